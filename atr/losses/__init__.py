"""Losses of paired audio and text embeddings."""

from atr.losses.pair import NTXent, PairLoss, Sigmoid, TripletMax, TripletSum, TripletWeighted, build
from atr.register import LOSSES

__all__ = ["LOSSES", "NTXent", "PairLoss", "Sigmoid", "TripletMax", "TripletSum", "TripletWeighted", "build"]
