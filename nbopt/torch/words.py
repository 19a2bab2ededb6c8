"""Messages about arrays, in the words of people who have tensors."""

from nbopt.errors import NboptError

_INSTEAD = {
    "x.astype(numpy.float32)": "x.float()",
    "numpy.ascontiguousarray(x)": "x.contiguous()",
    "numpy.array(x)": "x.clone()",
    "arrays of dtype": "tensors of dtype",
    "is no array whose memory could be shared. nbopt.get_backend().array(x) makes a tensor with a copy of "
    "its values": "is no tensor: torch.as_tensor(x) makes one",
}


def in_torchs_words(error):
    """Replace what an error of nbopt's says of NumPy.

    Parameters
    ----------
    error : BaseException
        Its message is changed.
    """
    if isinstance(error, NboptError) and error.args and isinstance(error.args[0], str):
        text = error.args[0]
        for ours, theirs in _INSTEAD.items():
            text = text.replace(ours, theirs)
        error.args = (text, *error.args[1:])
