"""log softmax of logits at target tokens, without the logits of the whole vocabulary at once.

Axes: V vocabulary, T its parts on the mesh (axis `tensor`), n chunks of c tokens in each part. All arrays are those of
one device: rows and length are split as the mesh splits them, and W is its part [V/T, D/fsdp] of the unembedding.

Forward, a chunk of logits at a time updates a running log-sum-exp. Backward, each chunk is computed again, and with
p = softmax the gradient of log p(target) in the logits is 1[target] - p (times the upstream gradient). Each chunk of W
is gathered when it is used, in the type of the computation; its gradient is scattered at once. So nothing of the size
of all logits or of the whole unembedding exists, and the sums over `tensor` are made once for all chunks.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from qrpo_jax.devices.constraints import STORAGE, spreads
from qrpo_jax.devices.dtypes import at_least_float32
from qrpo_jax.devices.mesh import LOGICAL, axis_size, mesh_axes, round_up, spec
from qrpo_jax.model.attention.rules import soft_cap

CHUNK = 8192  # tokens of the vocabulary; a device then holds 32 KiB of logits for each of its positions
NO_TARGET = -1
PADDING = -2  # in place of a token; no target equals it


class Head(NamedTuple):
    """How hidden states become log-probabilities.

    Attributes:
      temperature: divides the logits, after the soft cap.
      cap: soft cap of the logits, or None.
      vocab_chunk: tokens of the vocabulary a chunk; 0 is `CHUNK`.
      mesh: the devices over which hidden states and unembedding are spread; None for one device.
      scale: factor of the logits, before the soft cap.
    """

    temperature: float
    cap: float | None
    vocab_chunk: int
    mesh: Mesh | None
    scale: float = 1.0


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def token_log_probs(hidden_BxLxD: Array, unembedding_VxD: Array, targets_BxL: Array, head: Head) -> Array:
    """log softmax(logits / temperature) at the targets, float32 [B, L], with logits = scale · hidden @ unembedding.T.

    Args:
      hidden_BxLxD: hidden states after the last norm.
      unembedding_VxD: the matrix from hidden states to logits, split over the mesh as parameters are.
      targets_BxL: token ids, or `NO_TARGET`, where the result is 0.
      head: temperature and the rest.
    """
    return _forward(hidden_BxLxD, unembedding_VxD, targets_BxL, head)[0]


def _forward(hidden_BxLxD: Array, unembedding_VxD: Array, targets_BxL: Array, head: Head) -> tuple[Array, Array]:
    """The result, and the log-sum-exp of the logits, float32 [B, L]."""
    places = _Places.of(head.mesh, hidden_BxLxD, unembedding_VxD)
    run = places.on_devices(
        partial(_local_forward, head=head, places=places),
        (places.hidden, places.columns, places.targets),
        (places.targets, places.targets),
    )
    return run(hidden_BxLxD, unembedding_VxD, targets_BxL)


class _Kept(NamedTuple):
    """What the backward pass needs of the forward pass."""

    hidden_BxLxD: Array
    unembedding_VxD: Array
    targets_BxL: Array
    lse_BxL: Array
    trained: tuple[()] | None  # () if the unembedding is trained; None if it is frozen, as under LoRA


def _forward_rule(hidden: Any, unembedding: Any, targets: Any, head: Head) -> tuple[Array, _Kept]:
    arrays = hidden.value, unembedding.value, targets.value
    log_probs_BxL, lse_BxL = _forward(*arrays, head)
    return log_probs_BxL, _Kept(*arrays, lse_BxL, () if unembedding.perturbed else None)


def _backward_rule(head: Head, kept: _Kept, gradient_BxL: Array) -> tuple[Array, Array | None, None]:
    places, trained = _Places.of(head.mesh, kept.hidden_BxLxD, kept.unembedding_VxD), kept.trained is not None
    run = places.on_devices(
        partial(_local_backward, head=head, places=places, trained=trained),
        (places.hidden, places.columns, places.targets, places.targets, places.targets),
        (places.hidden, places.columns if trained else None),
    )
    return *run(*kept[:4], gradient_BxL), None


token_log_probs.defvjp(_forward_rule, _backward_rule, symbolic_zeros=True)


class _Places(NamedTuple):
    """Where arrays lie on the mesh, and the sums and gathers between its devices; nothing of it on one device."""

    mesh: Mesh | None
    hidden: PartitionSpec
    targets: PartitionSpec
    columns: PartitionSpec
    sequence: bool  # hidden states are split over `tensor` along their length
    storage: tuple[str, ...]  # axes that split columns for storage alone
    summed: tuple[str, ...]  # axes over which columns are copies
    copies: int  # how many devices compute the same positions, because the mesh could not split rows further

    @classmethod
    def of(cls, mesh: Mesh | None, hidden_BxLxD: Array, unembedding_VxD: Array) -> "_Places":
        nowhere = PartitionSpec()
        if mesh is None or not spreads(mesh):
            return cls(None, nowhere, nowhere, nowhere, False, (), (), 1)
        hidden = spec(mesh, ("rows", "residual_length", None), hidden_BxLxD.shape)
        targets = spec(mesh, ("rows", "length"), hidden_BxLxD.shape[:2])
        # Axes of one device are left out: on a CPU XLA gathers over them all the same, and transposes twice for that.
        storage = mesh_axes(spec(mesh, ("vocab", STORAGE), unembedding_VxD.shape)[1])
        storage = tuple(axis for axis in storage if mesh.shape[axis] > 1)
        sequence = mesh.shape["tensor"] > 1 and "tensor" in mesh_axes(hidden[1])
        columns = PartitionSpec(LOGICAL["vocab"], storage)
        summed = tuple(axis for axis in mesh.axis_names if axis not in (*storage, *LOGICAL["vocab"]))
        used = [mesh.shape[axis] for entry in targets for axis in mesh_axes(entry)]
        copies = axis_size(mesh, "rows") * axis_size(mesh, "length") // int(np.prod(used, dtype=int))
        return cls(mesh, hidden, targets, columns, sequence, storage, summed, copies)

    def on_devices(self, function: Any, inputs: Any, outputs: Any) -> Any:
        if self.mesh is None:
            return function
        return jax.shard_map(function, mesh=self.mesh, in_specs=inputs, out_specs=outputs, check_vma=False)

    @property
    def parts(self) -> int:
        """T."""
        return 1 if self.mesh is None else axis_size(self.mesh, "vocab")

    @property
    def part(self) -> Array | int:
        """Which of the T parts of the vocabulary this device has."""
        return 0 if self.mesh is None else jax.lax.axis_index(LOGICAL["vocab"])

    def whole_length(self, x_BxLxD: Array) -> Array:
        """Hidden states of all positions whose logits the device computes."""
        return jax.lax.all_gather(x_BxLxD, "tensor", axis=1, tiled=True) if self.sequence else x_BxLxD

    def sum_of_length(self, x_BxLxD: Array) -> Array:
        """The transpose of `whole_length`, and the sum over parts of the vocabulary."""
        if self.mesh is None:
            return x_BxLxD
        if self.sequence:
            return jax.lax.psum_scatter(x_BxLxD, "tensor", scatter_dimension=1, tiled=True)
        return jax.lax.psum(x_BxLxD, LOGICAL["vocab"])

    def whole_columns(self, columns_cxD: Array) -> Array:
        """A chunk of the unembedding in the whole model dimension."""
        return jax.lax.all_gather(columns_cxD, self.storage, axis=1, tiled=True) if self.storage else columns_cxD

    def sum_of_columns(self, columns_cxD: Array) -> Array:
        """The transpose of `whole_columns`."""
        if not self.storage:
            return columns_cxD
        return jax.lax.psum_scatter(columns_cxD, self.storage, scatter_dimension=1, tiled=True)

    def sum_over_rows(self, x: Array) -> Array:
        """The sum over the axes between whose devices columns are copies."""
        return x if self.mesh is None else jax.lax.psum(x, self.summed)

    def sum_over_parts(self, x: Array) -> Array:
        return x if self.mesh is None else jax.lax.psum(x, LOGICAL["vocab"])

    def largest_of_parts(self, x: Array) -> Array:
        return x if self.mesh is None else jax.lax.pmax(x, LOGICAL["vocab"])


class _Chunks(NamedTuple):
    """This device's part of the unembedding in n chunks, the last one padded."""

    columns_nxcxd: Array
    tokens_nxc: Array  # the token of each row; `PADDING` behind the part's last token


def _chunks(columns_vxd: Array, head: Head, places: _Places, dtype: Any) -> _Chunks:
    vocab = columns_vxd.shape[0]
    wanted = -(-(head.vocab_chunk or CHUNK) // places.parts)
    count = -(-vocab // min(wanted, vocab))
    size = -(-vocab // count)  # the fewest chunks, as equal as can be
    padded = jnp.pad(columns_vxd.astype(dtype), ((0, round_up(vocab, size) - vocab), (0, 0)))
    rows_nxc = jnp.arange(count * size).reshape(count, size)
    tokens_nxc = jnp.where(rows_nxc < vocab, places.part * vocab + rows_nxc, PADDING)
    return _Chunks(padded.reshape(count, size, -1), tokens_nxc)


def _logits(hidden_BxLxD: Array, columns_cxD: Array, tokens_c: Array, head: Head) -> tuple[Array, Array]:
    """Logits [B, L, c] of a chunk, float32, -inf in its padding; and the logits before the soft cap."""
    wide = at_least_float32(hidden_BxLxD.dtype)
    raw_BxLxc = head.scale * jnp.einsum("BLD,cD->BLc", hidden_BxLxD, columns_cxD, preferred_element_type=wide)
    logits_BxLxc = soft_cap(raw_BxLxc, head.cap) / head.temperature
    return jnp.where((tokens_c != PADDING)[None, None], logits_BxLxc, -jnp.inf), raw_BxLxc


def _local_forward(
    hidden_BxLxD: Array, columns_vxd: Array, targets_BxL: Array, *, head: Head, places: _Places
) -> tuple[Array, Array]:
    """log softmax at the targets, and log-sum-exp of the logits, float32 [B, L] each."""
    hidden_BxLxD = places.whole_length(hidden_BxLxD)
    chunks = _chunks(columns_vxd, head, places, hidden_BxLxD.dtype)

    def step(carry: tuple[Array, Array, Array], chunk: _Chunks) -> tuple[Any, None]:
        high_BxL, total_BxL, picked_BxL = carry
        columns_cxd, tokens_c = chunk
        logits_BxLxc, _ = _logits(hidden_BxLxD, places.whole_columns(columns_cxd), tokens_c, head)
        new_high_BxL = jnp.maximum(high_BxL, logits_BxLxc.max(-1))
        total_BxL = total_BxL * jnp.exp(high_BxL - new_high_BxL)
        total_BxL = total_BxL + jnp.exp(logits_BxLxc - new_high_BxL[..., None]).sum(-1)
        # A comparison and a sum run inside the same loop over the logits; a gather would need them in memory.
        is_target_BxLxc = tokens_c[None, None] == targets_BxL[..., None]
        picked_BxL = picked_BxL + jnp.where(is_target_BxLxc, logits_BxLxc, 0.0).sum(-1)
        return (new_high_BxL, total_BxL, picked_BxL), None

    zero_BxL = jnp.zeros(targets_BxL.shape, at_least_float32(hidden_BxLxD.dtype))
    start = (zero_BxL - jnp.inf, zero_BxL, zero_BxL)
    (high_BxL, total_BxL, picked_BxL), _ = jax.lax.scan(step, start, chunks)
    all_high_BxL = places.largest_of_parts(high_BxL)
    total_BxL = places.sum_over_parts(total_BxL * jnp.exp(high_BxL - all_high_BxL))
    lse_BxL = all_high_BxL + jnp.log(total_BxL)
    log_probs_BxL = places.sum_over_parts(picked_BxL) - lse_BxL
    return jnp.where(targets_BxL == NO_TARGET, 0.0, log_probs_BxL), lse_BxL


def _local_backward(
    hidden_BxLxD: Array,
    columns_vxd: Array,
    targets_BxL: Array,
    lse_BxL: Array,
    gradient_BxL: Array,
    *,
    head: Head,
    places: _Places,
    trained: bool,
) -> tuple[Array, Array | None]:
    """Gradients of the hidden states and, if it is trained, of its part of the unembedding; in their types."""
    whole_BxLxD = places.whole_length(hidden_BxLxD)
    dtype, wide = whole_BxLxD.dtype, at_least_float32(whole_BxLxD.dtype)
    chunks = _chunks(columns_vxd, head, places, dtype)
    gradient_BxL = gradient_BxL * head.scale / head.temperature
    gradient_BxLx1 = jnp.where(targets_BxL == NO_TARGET, 0.0, gradient_BxL)[..., None]

    def step(total_BxLxD: Array, chunk: _Chunks) -> tuple[Array, Any]:
        columns_cxd, tokens_c = chunk
        columns_cxD = places.whole_columns(columns_cxd)
        logits_BxLxc, raw_BxLxc = _logits(whole_BxLxD, columns_cxD, tokens_c, head)
        is_target_BxLxc = tokens_c[None, None] == targets_BxL[..., None]
        slope_BxLxc = gradient_BxLx1 * (is_target_BxLxc - jnp.exp(logits_BxLxc - lse_BxL[..., None]))
        if head.cap is not None:
            slope_BxLxc = slope_BxLxc * (1 - jnp.tanh(raw_BxLxc / head.cap) ** 2)
        slope_BxLxc = slope_BxLxc.astype(dtype)
        update = jnp.einsum("BLc,cD->BLD", slope_BxLxc, columns_cxD, preferred_element_type=wide)
        if not trained:
            return total_BxLxD + update, None
        # Rows and length as one axis, because XLA's CPU backend is slow at a product that contracts two.
        slope_Txc, hidden_TxD = (x.reshape(-1, x.shape[-1]) for x in (slope_BxLxc, whole_BxLxD))
        of_columns_cxD = slope_Txc.T @ hidden_TxD
        return total_BxLxD + update, places.sum_of_columns(of_columns_cxD)

    total_BxLxD = jnp.zeros(whole_BxLxD.shape, wide)
    total_BxLxD, of_columns_nxcxd = jax.lax.scan(step, total_BxLxD, chunks)
    of_hidden_BxLxD = places.sum_of_length(total_BxLxD.astype(dtype))
    if not trained:
        return of_hidden_BxLxD, None
    of_columns_vxd = of_columns_nxcxd.reshape(-1, columns_vxd.shape[1])[: columns_vxd.shape[0]]
    of_columns_vxd = (places.sum_over_rows(of_columns_vxd) / places.copies).astype(columns_vxd.dtype)
    return of_hidden_BxLxD, of_columns_vxd
