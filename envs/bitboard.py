"""Boards as bits: counting them, finding one, telling them apart.

A board is a row of words of 56 cells each, in int64: whole bytes, and never the sign bit.
"""

import torch
from torch import Tensor

WORD = 56  # cells a word


def words_for(cells: int) -> int:
    """Return how many words hold that many cells."""
    return -(-cells // WORD)


def count(bits: Tensor) -> Tensor:
    """How many bits of each word are set. Same shape, int64.

    Adds up fields of 1, 2 and 4 bits, then all bytes by one product.
    """
    bits = bits - (bits >> 1 & 0x5555555555555555)
    bits = (bits & 0x3333333333333333) + (bits >> 2 & 0x3333333333333333)
    bits = bits + (bits >> 4) & 0x0F0F0F0F0F0F0F0F
    return bits * 0x0101010101010101 >> 56


def bit(cell: Tensor, words: int) -> Tensor:
    """Return boards on which only `cell` (N,) is set, (N, words) int64; none is for a cell beyond the last word."""
    place = cell - torch.arange(0, words * WORD, WORD, device=cell.device)[:, None]
    return torch.where((place >= 0) & (place < WORD), 1 << place.clamp(0, WORD - 1), 0).T


def nth(board: Tensor, n: Tensor) -> Tensor:
    """Return the cell of the set bit before which `n` (N,) others are set, (N,) int64; board is (N, words).

    Finds the word, then halves it six times: is the bit in the lower half or above?
    """
    cell, rank, bits = torch.zeros_like(n), n, board[:, 0]
    before = count(bits)
    for number, word in enumerate(board.unbind(1)[1:], 1):
        further = n >= before
        cell = torch.where(further, number * WORD, cell)
        rank = torch.where(further, n - before, rank)
        bits = torch.where(further, word, bits)
        before = before + count(word)
    for half in (32, 16, 8, 4, 2, 1):
        low = bits & (1 << half) - 1
        below = count(low)
        above = rank >= below
        bits = torch.where(above, bits >> half, low)
        rank = torch.where(above, rank - below, rank)
        cell = torch.where(above, cell + half, cell)
    return cell


def unpack(board: Tensor, cells: int) -> Tensor:
    """Return which of the first `cells` cells are set, (N, cells) bool for (N, words).

    Looks every byte up among the 256 there are, which moves eight cells at a time.
    """
    eight = torch.arange(256, device=board.device)[:, None] >> torch.arange(8, device=board.device) & 1 == 1
    byte = board[:, :, None] >> torch.arange(0, WORD, 8, device=board.device) & 255
    return eight[byte].flatten(1)[:, :cells]


def full(cells: int, words: int, device: torch.device) -> Tensor:
    """Return the board on which the first `cells` cells are set, (words,) int64."""
    left = (cells - torch.arange(0, words * WORD, WORD, device=device)).clamp(0, WORD)
    return (1 << left) - 1
