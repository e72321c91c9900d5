"""Enhanced Cross-Attention, and the one rule that says which knowledge a position may read."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from llm_modules.errors import UserError

# Queries that attend at a time: a mask rendered whole would need a gigabyte for 32,000 tokens, and keys that none of a
# chunk may read are not multiplied, which spares nearly half of a long prompt.
QUERY_CHUNK = 256


@dataclass(frozen=True)
class VisibleKnowledge:
    """The visibility rule: query `i` may read knowledge `j` if `mask[j]` and, unless bidirectional, `j <= i`.

    `prompt` and `causal` differ only in what `mask` marks: the prompt's tokens, or every token.

    Args:
        mask: `[batch, source_len]` bool, True where there is knowledge to read.
        first_query: Column of the first query; knowledge column 0 is input column 0.
        bidirectional: Let every query read all knowledge, the future included.
        query_columns: `[batch, num_queries]` columns of the queries where they are not consecutive.
    """

    mask: Tensor
    first_query: int = 0
    bidirectional: bool = False
    query_columns: Tensor | None = None

    def render(self, start: int, stop: int) -> Tensor:
        """Mask for queries `start..stop`: `[batch, 1, stop - start, source_len]`, True means "may attend"."""
        keys = self.mask[:, None, None, :]
        if self.bidirectional:
            return keys.expand(-1, -1, stop - start, -1)
        columns = torch.arange(self.mask.shape[1], device=self.mask.device)
        if self.query_columns is not None:
            return keys & (columns <= self.query_columns[:, None, start:stop, None])
        queries = torch.arange(self.first_query + start, self.first_query + stop, device=self.mask.device)
        return keys & (columns <= queries[:, None])

    def num_columns(self, stop: int) -> int:
        """How many columns of knowledge, from the first, hold all that queries before `stop` may read; one at least."""
        source_len = self.mask.shape[1]
        if self.bidirectional or self.query_columns is not None:
            return source_len
        return max(1, min(self.first_query + stop, source_len))


class Adapter(nn.Module):
    """`a + LN(W2 GELU(W1 a))`: a residual bottleneck."""

    def __init__(self, width: int, d_adapter: int):
        super().__init__()
        self.down = nn.Linear(width, d_adapter)
        self.up = nn.Linear(d_adapter, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, states: Tensor) -> Tensor:
        """`[..., width]` to the same."""
        return states + self.norm(self.up(F.gelu(self.down(states))))


class EnhancedCrossAttention(GradientCheckpointingLayer):
    """Mix attended knowledge into the queries: `g * a + (1 - g) * x` with `g = sigmoid(W_g [x ; a])`.

    `a` is multi-head attention from `LN(x)` to `LN(knowledge)`, passed through a residual adapter (arXiv 2502.08213).
    The bridge adds the result to `x`, so a closed gate there doubles `x`, as published.

    Args:
        d_generator: Width `d` of queries and output.
        d_knowledge: Width `D` of the knowledge.
        num_heads: Attention heads; must divide `d_generator`.
        d_adapter: Width of the adapter's bottleneck.
        dropout: On attention weights, while training.

    Raises:
        UserError: If `num_heads` does not divide `d_generator`.
    """

    def __init__(
        self, d_generator: int, d_knowledge: int, *, num_heads: int = 8, d_adapter: int = 256, dropout: float = 0.1
    ):
        super().__init__()
        if num_heads < 1 or d_generator % num_heads:
            raise UserError(
                f"d_generator={d_generator} is not divisible by num_heads={num_heads}; choose one of its divisors"
            )
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_norm = nn.LayerNorm(d_generator)
        self.knowledge_norm = nn.LayerNorm(d_knowledge)
        self.query = nn.Linear(d_generator, d_generator)
        self.key = nn.Linear(d_knowledge, d_generator)
        self.value = nn.Linear(d_knowledge, d_generator)
        self.output = nn.Linear(d_generator, d_generator)
        self.adapter = Adapter(d_generator, d_adapter)
        self.gate = nn.Linear(2 * d_generator, d_generator)

    def project(self, knowledge: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of knowledge `[batch, source_len, D]`, each `[batch, heads, source_len, d / heads]`.

        They depend on the knowledge alone: decoding computes them once and keeps them in its cache.
        """
        normed = self.knowledge_norm(knowledge)
        return self._split(self.key(normed)), self._split(self.value(normed))

    def forward(
        self,
        queries: Tensor,
        *,
        knowledge: Tensor | None = None,
        keys_values: tuple[Tensor, Tensor] | None = None,
        visible: VisibleKnowledge | None = None,
    ) -> Tensor:
        """Let `queries` `[batch, query_len, d]` read the knowledge they may see.

        Args:
            queries: `[batch, query_len, d]`.
            knowledge: `[batch, source_len, D]`; or give `keys_values`.
            keys_values: What `project` returned.
            visible: Who may read what; `None`: all may read all.

        Returns:
            `[batch, query_len, d]`. A query that may read nothing attends to zeros.
        """
        if keys_values is None:
            if knowledge is None:
                raise UserError("give knowledge or keys_values; there is nothing to attend to")
            keys_values = self.project(knowledge)
        keys, values = keys_values
        attended = self.adapter(
            self.output(self._attend(self._split(self.query(self.query_norm(queries))), keys, values, visible))
        )
        gate = torch.sigmoid(self.gate(torch.cat([queries, attended], dim=-1)))
        return gate * attended + (1 - gate) * queries

    def weights(
        self, queries: Tensor, *, keys: Tensor, visible: VisibleKnowledge | None = None, start: int = 0
    ) -> Tensor:
        """Attention weights of queries `start..`, in fp32: what `forward` attends with and its kernel does not return.

        Args:
            queries: `[batch, query_len, d]`, as `forward` takes them.
            keys: The keys of what `project` returned.
            visible: Who may read what; `None`: all may read all.
            start: First query wanted.

        Returns:
            `[batch, heads, query_len - start, source_len]`; a query's sum to one, or are zero if it may read nothing.
        """
        asking = self._split(self.query(self.query_norm(queries[:, start:]))).float()
        scores = asking @ keys.float().transpose(-1, -2) / keys.shape[-1] ** 0.5
        if visible is None:
            return scores.softmax(-1)
        allowed = visible.render(start, queries.shape[1])
        weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
        return torch.where(allowed.any(-1, keepdim=True), weights, 0.0)  # a softmax over nothing is no number

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, visible: VisibleKnowledge | None) -> Tensor:
        length = queries.shape[2]
        dropout = self.dropout if self.training else 0.0
        chunks = []
        for start in range(0, length, QUERY_CHUNK):
            stop = min(start + QUERY_CHUNK, length)
            num_keys = keys.shape[2] if visible is None else visible.num_columns(stop)
            mask = None if visible is None else visible.render(start, stop)[..., :num_keys]
            # torch defines a query that may read nothing to attend to zeros, in value and gradient
            chunks.append(
                F.scaled_dot_product_attention(
                    queries[:, :, start:stop], keys[:, :, :num_keys], values[:, :, :num_keys], mask, dropout_p=dropout
                )
            )
        attended = chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=2)
        return attended.transpose(1, 2).flatten(2)

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
