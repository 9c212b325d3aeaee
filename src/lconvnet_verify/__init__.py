"""An independent checker of certificates: ``python -m lconvnet_verify CERTIFICATE MODEL``.

It shares no code with the package that writes certificates, needs only numpy and python-flint, and uses other methods:

===========  ==============================================  ====================================================
step         the certifier                                   this checker
===========  ==============================================  ====================================================
margin       float64 forward pass, error bounded a priori    exact integers (``exact.py``)
layer norms  residual certificate, Gram iteration, spectrum  U^2 I - W W^T is positive definite, by Cholesky
                                                             (``proof.py``)
rounding     a line in the norm of the image                 balls, at the largest norm (``proof.py``)
===========  ==============================================  ====================================================

Let f be the network of MODEL and x the pixels in the certificate. For every x' with |x' - x|_2 less than the radius,
it proves:

- level "analytic": f in real arithmetic gives x' the label of the certificate, and no other logit is as large;
- level "sound": the same holds for f in the dtype of its weights and every x' of that dtype. It holds for any order of
  the additions, with or without fused multiplication and addition, and whether subnormal numbers are kept or count as
  zero. Every product must be a plain sum of products (no Winograd, Fourier or Strassen kernels, no TensorFloat-32).

One table (``reading.py``) states what an operation may have; anything else is refused while a model is read. The other
entries of a certificate (the origin of the image, methods, versions) are for people and not checked.
"""

from lconvnet_verify.proof import Prover
from lconvnet_verify.reading import InvalidFile, NotProved

__all__ = ["InvalidFile", "NotProved", "Prover"]
