"""Train the network on the project's own lines. Needs torch; reading with it does not."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from warmline.progress import Advance
from warmline.safety.network import DILATIONS, NUM_PIECES, PADDING, UNKNOWN, Encoded, Network, encode, ids_of
from warmline.safety.redteam.cases import Line

EMBEDDING = 64
NUM_EPOCHS, BATCH_SIZE, PEAK_RATE = 7, 64, 3e-3
FAMILY_WEIGHT = 0.15  # of guessing the line's family: lines of one family say the same in other words
DROPOUT, WORD_DROPOUT = 0.4, 0.1
KNOWN_AFTER = 3  # times that a word must occur to have an embedding of its own


class _Network(nn.Module):
    def __init__(self, num_words: int, num_families: int) -> None:
        super().__init__()
        self.word = nn.Embedding(num_words, EMBEDDING, padding_idx=PADDING)
        self.piece = nn.Embedding(NUM_PIECES, EMBEDDING, padding_idx=0)
        for table in (self.word, self.piece):
            nn.init.normal_(table.weight, 0, 0.1)
            table.weight.data[0] = 0
        self.layers = nn.ModuleList(
            nn.Conv1d(EMBEDDING, 2 * EMBEDDING, 3, padding=dilation, dilation=dilation) for dilation in DILATIONS
        )
        self.attention = nn.Linear(EMBEDDING, 1)
        self.dropout = nn.Dropout(DROPOUT)
        self.level = nn.Linear(2 * EMBEDDING, 3)
        self.family = nn.Linear(2 * EMBEDDING, num_families)

    def forward(self, word_D: Tensor, piece_DP: Tensor, place_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Log-odds of the levels, scores of the families."""
        real_BT1 = (place_BT > 0)[..., None]
        num_D1 = (piece_DP > 0).sum(1, keepdim=True).clamp(min=1)
        ids_BT = word_D[place_BT]
        if self.training:
            ids_BT = ids_BT.masked_fill((torch.rand(ids_BT.shape) < WORD_DROPOUT) & real_BT1[..., 0], UNKNOWN)
        spelled_BTE = F.embedding(place_BT, self.piece(piece_DP).sum(1) / num_D1)
        state_BTE = self.dropout(self.word(ids_BT) + spelled_BTE) * real_BT1
        for layer in self.layers:
            added_BTE, gate_BTE = layer(state_BTE.transpose(1, 2)).transpose(1, 2).chunk(2, -1)
            state_BTE = (state_BTE + self.dropout(added_BTE.tanh() * gate_BTE.sigmoid())) * real_BT1
        weight_BT1 = self.attention(state_BTE).masked_fill(~real_BT1, -1e9).softmax(1)
        most_BE = state_BTE.masked_fill(~real_BT1, -1e9).amax(1)
        summary_BF = self.dropout(torch.cat([(weight_BT1 * state_BTE).sum(1), most_BE], 1))
        return self.level(summary_BF), self.family(summary_BF)


def num_steps(lines: Sequence[Line]) -> int:
    """Steps of a fit."""
    return NUM_EPOCHS * max(1, len(lines) // BATCH_SIZE)


def fit_network(rows: Sequence[Sequence[str]], lines: Sequence[Line], advance: Advance) -> Network:
    """Weights from lines and their rows of words; the same for the same lines on one machine.

    One thread: batches are too small for two.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    counts = Counter(word for words in rows for word in words)
    words = sorted(word for word, count in counts.items() if count >= KNOWN_AFTER)
    families = {name: number for number, name in enumerate(sorted({line.family for line in lines}))}
    network = _Network(len(words) + 2, len(families))
    level_NK = torch.tensor([[float(line.level >= k) for k in (1, 2, 3)] for line in lines])
    family_N = torch.tensor([families[line.family] for line in lines])
    order = np.argsort([len(each) for each in rows], kind="stable")
    batches = np.array_split(order, max(1, len(order) // BATCH_SIZE))
    word_ids = ids_of(words)
    encoded = [tensors(encode([rows[int(at)] for at in batch], word_ids)) for batch in batches]
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=NUM_EPOCHS * len(batches))
    rng = np.random.default_rng(0)
    for _ in range(NUM_EPOCHS):
        for number in rng.permutation(len(batches)):
            chosen = torch.from_numpy(batches[number])
            level_BK, family_BF = network(*encoded[number])
            loss = F.binary_cross_entropy_with_logits(level_BK, level_NK[chosen])
            loss = loss + FAMILY_WEIGHT * F.cross_entropy(family_BF, family_N[chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            advance(1, "")
    return weights_of(network.eval(), words)


def tensors(rows: Encoded) -> tuple[Tensor, ...]:
    """What `_Network` reads."""
    return tuple(map(torch.from_numpy, rows))


def weights_of(network: _Network, words: Sequence[str]) -> Network:
    """The weights as numpy reads them: a filter's three places first, its inputs before its outputs."""
    state = {name: value.numpy().astype(np.float32) for name, value in network.state_dict().items()}
    layers = range(len(DILATIONS))
    return Network(
        ids_of(words),
        state["word.weight"],
        state["piece.weight"],
        np.stack([state[f"layers.{layer}.weight"].transpose(2, 1, 0) for layer in layers]),
        np.stack([state[f"layers.{layer}.bias"] for layer in layers]),
        state["attention.weight"][0],
        float(state["attention.bias"][0]),
        state["level.weight"],
        state["level.bias"],
    )
