"""A custom evaluation: agreement of clusters of features with the classes.

    PYTHONPATH=examples mmpatchmix train examples/own_evaluation_digits.py

A hook adds a metric after each evaluation. It is logged and drawn, and can choose the best
checkpoint: default_hooks.checkpoint.save_best=clusters/agreement.
"""

from mmengine.hooks import Hook
from mmengine.runner import Runner
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score

from mmpatchmix.evaluation import extract_features
from mmpatchmix.registry import HOOKS


@HOOKS.register_module()
class ClusterHook(Hook):
    """Log the adjusted mutual information of k-means clusters and classes, in percent."""

    priority = 'HIGHEST'  # before the hooks that log the metrics

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Cluster the features of the test images; there are as many clusters as classes."""
        found = extract_features(runner.model, runner.val_loop.dataloader, title='clusters')
        labels = found.labels.numpy()
        k_means = KMeans(n_clusters=len(set(labels)), n_init=4, random_state=0)
        clusters = k_means.fit_predict(found.features.numpy())
        metrics['clusters/agreement'] = 100 * adjusted_mutual_info_score(labels, clusters)
