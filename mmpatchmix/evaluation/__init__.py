"""Evaluation of features: kNN, linear probe, low-shot, geometry; returns numbers, draws nothing."""

from mmpatchmix import registry  # prepares the stack before it is imported
from mmpatchmix.evaluation.continue_guard_hook import ContinueGuardHook
from mmpatchmix.evaluation.features import Features, extract_features
from mmpatchmix.evaluation.health import HealthHook
from mmpatchmix.evaluation.knn import find_neighbors, knn_predict
from mmpatchmix.evaluation.knn_loop import KNNLoop, KNNMetric
from mmpatchmix.evaluation.linear_probe import Accuracy, linear_probe, low_shot, low_shot_indices
from mmpatchmix.evaluation.online_probe_hook import OnlineProbeHook
