"""Train the recurrent network on the project's own lines. Needs torch; reading with it does not."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from warmline.progress import Advance
from warmline.safety.matcher import Reading
from warmline.safety.recurrent import NUM_PIECES, PADDING, UNKNOWN, Recurrent, encode, ids_of, words_of
from warmline.safety.redteam.cases import Line

EMBEDDING, HIDDEN = 64, 64
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
        self.gru = nn.GRU(EMBEDDING, HIDDEN, batch_first=True, bidirectional=True)
        self.attention = nn.Linear(2 * HIDDEN, 1)
        self.dropout = nn.Dropout(DROPOUT)
        self.level = nn.Linear(4 * HIDDEN, 3)
        self.family = nn.Linear(4 * HIDDEN, num_families)

    def forward(self, ids_BT: Tensor, pieces_BTP: Tensor) -> tuple[Tensor, Tensor]:
        real_BT = ids_BT != PADDING
        if self.training:
            ids_BT = ids_BT.masked_fill((torch.rand(ids_BT.shape) < WORD_DROPOUT) & real_BT, UNKNOWN)
        num_B1 = (pieces_BTP > 0).sum(2, keepdim=True).clamp(min=1)
        embedded_BTE = self.dropout(self.word(ids_BT) + self.piece(pieces_BTP).sum(2) / num_B1)
        packed = nn.utils.rnn.pack_padded_sequence(embedded_BTE, real_BT.sum(1), batch_first=True, enforce_sorted=False)
        states_BTC, _ = nn.utils.rnn.pad_packed_sequence(
            self.gru(packed)[0], batch_first=True, total_length=ids_BT.shape[1]
        )
        weight_BT = self.attention(states_BTC).squeeze(-1).masked_fill(~real_BT, -1e9).softmax(1)
        mean_BC = (weight_BT[..., None] * states_BTC).sum(1)
        most_BC = states_BTC.masked_fill(~real_BT[..., None], -1e9).amax(1)
        summary = self.dropout(torch.cat([mean_BC, most_BC], 1))
        return self.level(summary), self.family(summary)


def num_steps(lines: Sequence[Line]) -> int:
    """Steps of a fit."""
    return NUM_EPOCHS * max(1, len(lines) // BATCH_SIZE)


def fit_recurrent(readings: Sequence[Reading], lines: Sequence[Line], advance: Advance) -> Recurrent:
    """Weights from lines; the same for the same lines on one machine. One thread: batches are too small for two."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    messages = [words_of(each) for each in readings]
    counts = Counter(word for words in messages for word in words)
    words = sorted(word for word, count in counts.items() if count >= KNOWN_AFTER)
    families = {name: number for number, name in enumerate(sorted({line.family for line in lines}))}
    network = _Network(len(words) + 2, len(families))
    level_NK = torch.tensor([[float(line.level >= k) for k in (1, 2, 3)] for line in lines])
    family_N = torch.tensor([families[line.family] for line in lines])
    order = np.argsort([len(each) for each in messages], kind="stable")
    batches = np.array_split(order, max(1, len(order) // BATCH_SIZE))
    encoded = [tuple(map(torch.from_numpy, encode([messages[at] for at in batch], ids_of(words)))) for batch in batches]
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=NUM_EPOCHS * len(batches))
    rng = np.random.default_rng(0)
    for _ in range(NUM_EPOCHS):
        for number in rng.permutation(len(batches)):
            rows = torch.from_numpy(batches[number])
            level_BK, family_BF = network(*encoded[number])
            loss = F.binary_cross_entropy_with_logits(level_BK, level_NK[rows])
            loss = loss + FAMILY_WEIGHT * F.cross_entropy(family_BF, family_N[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            advance(1, "")
    return _weights(network.eval(), words)


def _weights(network: _Network, words: Sequence[str]) -> Recurrent:
    state = {name: value.numpy().astype(np.float32) for name, value in network.state_dict().items()}

    def both(name: str) -> np.ndarray:
        return np.stack([state[f"gru.{name}_l0"], state[f"gru.{name}_l0_reverse"]])

    return Recurrent(
        ids_of(words),
        state["word.weight"],
        state["piece.weight"],
        both("weight_ih"),
        both("weight_hh"),
        both("bias_ih"),
        both("bias_hh"),
        state["attention.weight"][0],
        float(state["attention.bias"][0]),
        state["level.weight"],
        state["level.bias"],
    )
