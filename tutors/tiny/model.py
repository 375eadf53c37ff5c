"""A small Llama: the architecture of Touvron et al. 2023 (arXiv:2302.13971), named as vLLM loads it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """The sizes of a model."""

    vocabulary: int
    width: int = 160
    layers: int = 6
    heads: int = 5  # of 32 each, the smallest that vLLM's attention on CPUs takes
    hidden: int = 448  # of the feed-forward network
    positions: int = 512
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    def as_hugging_face(self) -> dict[str, object]:
        """Return what `config.json` says of such a model."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "head_dim": self.width // self.heads,
            "intermediate_size": self.hidden,
            "max_position_embeddings": self.positions,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.norm_eps,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": 1,
            "pad_token_id": 0,
            "torch_dtype": "bfloat16",
        }


class Llama(nn.Module):
    """A Llama that computes the prefix that all prompts share once, and many suffixes at a time."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Body(shape)
        self.apply(initialise)

    def forward(self, prefix: Tensor, suffixes: Tensor, last: Tensor) -> Tensor:
        """Return the logits of the next token after each prompt, (B, vocabulary).

        Args:
            prefix: (P,) int64 token ids, the same for all.
            suffixes: (B, S) int64 token ids, padded on the right.
            last: (B,) int64, the index in `suffixes` of each prompt's last token.
        """
        start = self.model.embed_tokens(prefix[None])
        x = self.model.embed_tokens(suffixes)
        angles = self.angles(len(prefix) + suffixes.shape[1], x.device)
        for layer in self.model.layers:
            start, x = layer(start, x, angles)
        x = self.model.norm(x[torch.arange(len(x), device=x.device), last])
        return x @ self.model.embed_tokens.weight.T

    def angles(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the cosine and sine of every position's rotations, each (length, head width)."""
        width = self.shape.width // self.shape.heads
        rates = self.shape.rope_theta ** (-torch.arange(0, width, 2, device=device) / width)
        turns = torch.arange(length, device=device)[:, None] * torch.cat([rates, rates])
        return turns.cos(), turns.sin()


class Body(nn.Module):
    """All parameters, under the names that vLLM expects."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, shape.norm_eps)


class Layer(nn.Module):
    """A pre-norm transformer block: attention, then a gated feed-forward network."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.width, shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.width, shape.norm_eps)
        self.mlp = FeedForward(shape)

    def forward(self, start: Tensor, x: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        to_start, to_x = self.self_attn(self.input_layernorm(start), self.input_layernorm(x), angles)
        start, x = start + to_start, x + to_x
        return (
            start + self.mlp(self.post_attention_layernorm(start)),
            x + self.mlp(self.post_attention_layernorm(x)),
        )


class Attention(nn.Module):
    """Causal attention in which all suffixes attend to one copy of the shared prefix."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.q_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.k_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.v_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.o_proj = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, start: Tensor, x: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        prefix, length = start.shape[1], x.shape[1]
        cos, sin = angles
        first, rest = (cos[:prefix], sin[:prefix]), (cos[prefix:], sin[prefix:])
        q_start, k_start, v_start = self.project(start, first)
        q, k, v = self.project(x, rest)
        to_start = F.scaled_dot_product_attention(q_start, k_start, v_start, is_causal=True)
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        within = (q @ k.transpose(2, 3)).masked_fill(later, -torch.inf)
        scores = torch.cat([q @ k_start.transpose(2, 3), within], 3)
        weights = (scores * q.shape[3] ** -0.5).softmax(3)  # (B, heads, S, P + S)
        to_x = weights[..., :prefix] @ v_start + weights[..., prefix:] @ v
        return self.o_proj(self.join(to_start)), self.o_proj(self.join(to_x))

    def project(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, (B, heads, length, head width), the first two rotated."""
        q, k, v = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        return rotate(q, angles), rotate(k, angles), v

    def join(self, x: Tensor) -> Tensor:
        """Concatenate the heads."""
        return x.transpose(1, 2).flatten(2)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down_proj = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each pair (i, i + half) of a head by its position's angle (RoPE, arXiv:2104.09864)."""
    cos, sin = angles
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin


def initialise(module: nn.Module) -> None:
    """Initialise weights with standard deviation 0.04; GPT-2 and Llama, which are wider, use 0.02."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.04)
