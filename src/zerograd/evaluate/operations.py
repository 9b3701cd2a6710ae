"""The torch operations that the perturbed forward knows by name: what each does to rows, and its fast rule.

`OPERATIONS` is the only list of names. A new operation is one name, or one line, in it. An operation that is not in the
table computes row by row: row i of its result comes from row i of its arguments. The self-check compares the outcome
with really perturbed weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

Rows = Literal["each", "first", "broadcast", "along", "product", "einsum", "move", "constant", "copy", "write", "metadata"]
Move = Literal["", "index", "gather", "shape", "join", "stack", "swap", "permute", "expand", "insert", "dimension"]
Rule = Literal[
    "", "linear", "addmm", "matmul", "grouped", "transpose", "embedding", "getitem", "cast", "layer_norm", "rms_norm", "elementwise"
]


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation's record.

    rows: how the rows of the result follow from those of the arguments:

        each       row i of the result comes from row i of each argument
        broadcast  the same, after arguments with fewer dimensions are broadcast, which moves their rows to another dimension
        along      one or more dimensions are reduced, sorted or mixed; rows stay when the leading dimension is not among them
        product    a matrix product: rows are those of the left factor, or of all factors for stacks of matrices
        first      row i of the result comes from row i of the first argument, whatever the others are
        einsum     rows stay when the result's first letter is the first letter of each operand of the batch
        move       elements change their place and keep their value
        constant   the result holds no value of the arguments
        copy       the result is the first argument with values written into it
        write      values are written into the first argument
        metadata   the result is a property that no perturbation changes, such as a shape; these never reach rules

    move: for moves, when the leading dimension plainly stays as it is; "" asks to follow the elements.
    dimension: position of the argument that names the dimension ("along", and moves "insert" and "dimension").
    last: the dimension is the last one when it is not given; otherwise it is all of them, or the first.
    value: position of the values that are written, counted after the target ("copy" and "write").
    writes_as: the in-place method of tensors that writes in the same places, without arithmetic.
    weight_ndim: in calls whose tensors have at most this many dimensions, a tensor without the batch is a weight, even
        if its leading dimension is as long as the batch's.
    training: position of the argument that makes the operation mix examples when it is true.
    sorts: orders the elements of a dimension by their size; its last result says where each one was.
    elementwise: with a tensor as second argument it works element by element, not along a dimension.
    casts: changes no value but its dtype; what it returns may be the tensor itself.
    reads: gives values to Python or to other libraries, where a perturbation cannot follow.
    mend: for an operation that takes the batch and a parameter and cannot be split by example: what to do about it.
    rule: the function of `rules.py` that computes it with perturbed parameters.
    affine: whether the operation scales the other operand or shifts it.
    """

    rows: Rows = "each"
    move: Move = ""
    dimension: int = 1
    last: bool = False
    sorts: bool = False
    elementwise: bool = False
    value: int = 2
    writes_as: str = ""
    weight_ndim: int = 0
    training: int | None = None
    casts: bool = False
    reads: bool = False
    mend: str = ""
    rule: Rule = ""
    affine: Literal["", "scale", "shift"] = ""

    @property
    def chooses(self) -> bool:
        """Whether one of its arguments may say which elements are moved, or where values are written."""
        return self.sorts or self.rows in ("write", "copy") or (self.rows == "move" and self.move in ("", "index", "gather"))


UNKNOWN = Operation()
"""The record of an operation that is not in the table."""

_FREEZE = "freeze it or pass a closure"
_PLAIN_EXPERTS = "give it rows and stacked matrices alone, or call model.set_experts_implementation('eager')"

_TABLE: tuple[tuple[str, Operation], ...] = (
    # Properties of tensors that no perturbation changes
    ("shape dtype device layout ndim is_leaf requires_grad grad_fn is_cuda is_sparse is_quantized", Operation("metadata")),
    ("is_meta is_mps is_xla is_nested itemsize nbytes _version size dim ndimension numel nelement", Operation("metadata")),
    ("stride is_floating_point is_complex __len__ is_contiguous element_size data_ptr storage_offset", Operation("metadata")),
    ("get_device requires_grad_ __hash__", Operation("metadata")),
    # Values that leave torch
    ("item tolist numpy __array__ __bool__ __float__ __int__ __index__ __contains__ equal allclose", Operation(reads=True)),
    ("is_nonzero untyped_storage storage __dlpack__", Operation(reads=True)),
    # Casts
    ("float to type_as bfloat16 half contiguous detach", Operation("first", casts=True, rule="cast")),
    # Products
    ("linear", Operation("product", weight_ndim=2, rule="linear")),
    ("addmm", Operation("product", weight_ndim=2, rule="addmm")),
    ("matmul __matmul__ mm", Operation("product", weight_ndim=2, rule="matmul")),
    ("__rmatmul__ bmm baddbmm", Operation("product", weight_ndim=2)),
    ("einsum", Operation("einsum")),
    ("outer ger inner tensordot bilinear cdist", Operation(weight_ndim=2)),
    ("conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d convolution", Operation(weight_ndim=5)),
    # Lookups
    ("embedding", Operation(weight_ndim=2, rule="embedding")),
    ("embedding_bag", Operation(weight_ndim=2)),
    ("__getitem__", Operation("move", "index", weight_ndim=2, rule="getitem")),
    ("index_select", Operation("move", weight_ndim=2)),
    ("gather take_along_dim", Operation("move", "gather")),
    # Norms
    ("layer_norm", Operation(rule="layer_norm")),
    ("rms_norm", Operation(rule="rms_norm")),
    ("batch_norm", Operation(training=5)),
    # Elementwise operations
    ("mul multiply __mul__ __rmul__", Operation("broadcast", rule="elementwise", affine="scale")),
    ("add __add__ __radd__", Operation("broadcast", rule="elementwise", affine="shift")),
    ("sub div true_divide subtract rsub add_ sub_ mul_ div_ __iadd__", Operation("broadcast", rule="elementwise")),
    ("__sub__ __rsub__ __isub__ __imul__ __truediv__ __rtruediv__ __itruediv__", Operation("broadcast", rule="elementwise")),
    ("pow __pow__ __rpow__ where maximum minimum addcmul lerp logaddexp atan2", Operation("broadcast")),
    # Along dimensions
    ("sum mean amax amin argmax argmin logsumexp softmax log_softmax softmin cumsum cumprod prod std", Operation("along")),
    ("var any all median count_nonzero var_mean std_mean aminmax nanmedian nansum nanmean msort cummax cummin", Operation("along")),
    ("logcumsumexp unique nonzero bincount histc", Operation("along")),
    ("max min", Operation("along", elementwise=True)),
    ("sort argsort", Operation("along", last=True, sorts=True)),
    ("mode cumulative_trapezoid trapezoid", Operation("along", last=True)),
    ("norm normalize linalg_norm linalg_vector_norm quantile nanquantile", Operation("along", dimension=2)),
    ("topk kthvalue diff fft_fft fft_ifft fft_rfft fft_irfft", Operation("along", dimension=2, last=True)),
    # Moves
    ("reshape view view_as reshape_as flatten unflatten ravel", Operation("move", "shape")),
    ("cat concat concatenate", Operation("move", "join")),
    ("stack", Operation("move", "stack")),
    ("transpose swapaxes swapdims", Operation("move", "swap", rule="transpose")),
    ("permute", Operation("move", "permute")),
    ("expand expand_as broadcast_to", Operation("move", "expand")),
    ("unsqueeze", Operation("move", "insert", dimension=1)),
    ("squeeze narrow select unbind", Operation("move", "dimension", dimension=1)),
    ("chunk split tensor_split", Operation("move", "dimension", dimension=2)),
    ("flip fliplr flipud roll rot90 repeat repeat_interleave tile hstack vstack movedim moveaxis t T H", Operation("move")),
    ("mT", Operation("move", rule="transpose")),
    ("unfold masked_select diagonal split_with_sizes dsplit vsplit hsplit", Operation("move")),
    # Constants
    ("zeros_like ones_like empty_like full_like rand_like randn_like", Operation("constant")),
    ("new_zeros new_ones new_empty new_full new_tensor", Operation("constant")),
    # Writes
    ("__setitem__", Operation("write", value=1, writes_as="__setitem__")),
    ("copy_", Operation("write", value=0, writes_as="copy_")),
    ("masked_scatter_", Operation("write", value=1, writes_as="masked_scatter_")),
    ("index_put_", Operation("write", value=1, writes_as="index_put_")),
    ("index_copy_ index_add_", Operation("write", value=2, writes_as="index_copy_")),
    ("scatter_ scatter_add_", Operation("write", value=2, writes_as="scatter_")),
    ("index_put", Operation("copy", value=1, writes_as="index_put_")),
    ("index_copy index_add", Operation("copy", value=2, writes_as="index_copy_")),
    ("scatter scatter_add", Operation("copy", value=2, writes_as="scatter_")),
    # Products of rows with matrices of a stack, each group of consecutive rows with its own: a mixture's experts
    ("_grouped_mm grouped_mm grouped_mm_fallback", Operation("first", rule="grouped", mend=_PLAIN_EXPERTS)),
    # Operations that cannot be split by example
    ("_scaled_grouped_mm", Operation("first", mend=_PLAIN_EXPERTS)),
    ("multi_head_attention_forward _native_multi_head_attention", Operation(mend=_FREEZE)),
)


def _by_name(table: tuple[tuple[str, Operation], ...]) -> dict[str, Operation]:
    records: dict[str, Operation] = {}
    for names, operation in table:
        for name in names.split():
            if name in records:
                raise ValueError(f"the operation {name} is in the table twice")
            records[name] = operation
    return records


OPERATIONS = _by_name(_TABLE)
"""The record of each known operation, by the `__name__` of the function or the property."""


def _metadata(name: str) -> Any:
    member = getattr(torch.Tensor, name)
    return member if callable(member) else member.__get__


METADATA = frozenset(_metadata(name) for name, operation in OPERATIONS.items() if operation.rows == "metadata")
"""The functions themselves of the table's metadata: models call them more often than any other, so they are known
first.
"""


_AUGMENTED = frozenset(
    f"__i{name}__"
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift")
)


def is_in_place(name: str) -> bool:
    """Whether an operation changes its first argument, by torch's rules for names."""
    return name in _AUGMENTED or (name.endswith("_") and not name.endswith("__"))
