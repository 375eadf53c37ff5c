"""Boards as bits: counting them, finding the n-th one, unpacking them.

A board is a row of words of 56 cells each, in int64: whole bytes, and never the sign bit.
"""

import torch
from torch import Tensor

CELLS_PER_WORD = 56


def num_words(cells: int) -> int:
    """Return how many words hold that many cells."""
    return -(-cells // CELLS_PER_WORD)


def popcount(bits: Tensor) -> Tensor:
    """Return how many bits of each word are set. Same shape, int64.

    Adds up fields of 1, 2 and 4 bits, then all bytes by one product.
    """
    bits = bits - (bits >> 1 & 0x5555555555555555)
    bits = (bits & 0x3333333333333333) + (bits >> 2 & 0x3333333333333333)
    bits = bits + (bits >> 4) & 0x0F0F0F0F0F0F0F0F
    return bits * 0x0101010101010101 >> 56


def one_bit(cell: Tensor, words: int) -> Tensor:
    """Return boards (N, words) int64 on which only `cell` (N,) is set; no bit is, for a cell beyond the last word."""
    index = cell - torch.arange(0, words * CELLS_PER_WORD, CELLS_PER_WORD, device=cell.device)[:, None]
    is_inside = (index >= 0) & (index < CELLS_PER_WORD)
    return torch.where(is_inside, 1 << index.clamp(0, CELLS_PER_WORD - 1), 0).T


def nth_set_bit(board: Tensor, n: Tensor) -> Tensor:
    """Return the cell of the set bit before which `n` (N,) others are set, (N,) int64; board is (N, words).

    Finds the word, then halves it six times: is the bit in the lower half or above?
    """
    cell, rank, bits = torch.zeros_like(n), n, board[:, 0]
    before = popcount(bits)
    for number, word in enumerate(board.unbind(1)[1:], 1):
        further = n >= before
        cell = torch.where(further, number * CELLS_PER_WORD, cell)
        rank = torch.where(further, n - before, rank)
        bits = torch.where(further, word, bits)
        before = before + popcount(word)
    for half in (32, 16, 8, 4, 2, 1):
        low = bits & (1 << half) - 1
        below = popcount(low)
        above = rank >= below
        bits = torch.where(above, bits >> half, low)
        rank = torch.where(above, rank - below, rank)
        cell = torch.where(above, cell + half, cell)
    return cell


def unpack(board: Tensor, cells: int) -> Tensor:
    """Return which of the first `cells` cells are set, (N, cells) bool for (N, words).

    Looks every byte up among the 256 possible ones, which moves eight cells at a time.
    """
    bits_of_byte = torch.arange(256, device=board.device)[:, None] >> torch.arange(8, device=board.device) & 1 == 1
    byte = board[:, :, None] >> torch.arange(0, CELLS_PER_WORD, 8, device=board.device) & 255
    return bits_of_byte[byte].flatten(1)[:, :cells]


def full_board(cells: int, words: int, device: torch.device) -> Tensor:
    """Return the board on which the first `cells` cells are set, (words,) int64."""
    starts = torch.arange(0, words * CELLS_PER_WORD, CELLS_PER_WORD, device=device)
    return (1 << (cells - starts).clamp(0, CELLS_PER_WORD)) - 1
