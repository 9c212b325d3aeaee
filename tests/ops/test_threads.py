import threading

import pytest
import torch

from lconvnet.ops.threads import map_batch


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 100])
def test_a_batch_in_parts_is_the_batch_in_order(count):
    batch = torch.randn(count, 3, 5, dtype=torch.float64)
    assert torch.equal(map_batch(torch.linalg.svdvals, batch), torch.linalg.svdvals(batch))


@pytest.mark.usefixtures("two_threads")
def test_workers_have_one_thread_and_leave_no_trace():
    seen = set()

    def watched(part):
        seen.add((threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
        return part

    map_batch(watched, torch.zeros(64, 2, 2))
    inherited = []
    newcomer = threading.Thread(target=lambda: inherited.append(torch.get_num_threads()))
    newcomer.start()
    newcomer.join()
    assert seen == {(False, 1)}
    assert torch.get_num_threads() == 2
    assert inherited == [2]


@pytest.mark.usefixtures("two_threads")
def test_an_error_in_a_worker_is_raised_and_the_threads_are_given_back():
    with pytest.raises(RuntimeError, match="square"):
        map_batch(torch.linalg.eigvalsh, torch.zeros(4, 2, 3))
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_gradients_are_recorded():
    batch = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda batch: map_batch(torch.linalg.svdvals, batch), (batch,))
