"""An independent checker of certificates: ``python -m lconvnet_verify CERTIFICATE MODEL``.

It shares no code with the package that writes certificates, needs numpy and python-flint only, and takes another road:

===========  ==============================================  ====================================================
step         who certifies                                   this checker
===========  ==============================================  ====================================================
margin       float64 forward pass, error bounded a priori    exact integers (``exact.py``)
layer norms  residual certificate, Gram iteration, spectrum  U^2 I - W W^T is positive definite, by Cholesky
                                                             (``proof.py``)
rounding     a line in the norm of the image                 balls, at the largest norm (``proof.py``)
===========  ==============================================  ====================================================

What is proved, where f is the network of MODEL and x the pixels in the certificate: for every x' with |x' - x|_2 less
than the radius,

- level "analytic": f in real arithmetic gives x' the label of the certificate, and no other logit is as large;
- level "sound": so does f in the dtype of its weights, for every x' of that dtype, whatever the order of the additions
  and with or without fused multiplication and addition, as long as every product is a plain sum of products (no
  Winograd, Fourier or Strassen kernels, no TensorFloat-32), and whether subnormal numbers are kept or count as zero.

What an operation may have stands in one table (``reading.py``); anything else is refused while a model is read.

What a certificate says besides (where the image comes from, methods, versions) is for people and not checked.
"""

from lconvnet_verify.proof import Prover
from lconvnet_verify.reading import InvalidFile, NotProved

__all__ = ["InvalidFile", "NotProved", "Prover"]
