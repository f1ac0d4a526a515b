"""Distributed training written out plainly, in one process and in float64: no wrapper, no hook."""

import torch
from torch.nn import functional as F

from tests.models.ranks import ADAMW, MOMENTUM, NUM_IMAGES, STEPS, prepare
from tests.models.test_contrastive_head import naive_contrast, naive_rows
from tests.models.tiny import tiny_model

TEMPERATURE = 0.2


class Emulation:
    """Several ranks in turns: the same weights, BatchNorm statistics of their own."""

    def __init__(self, start, num_ranks):
        self.model = tiny_model().train().double()
        self.model.load_state_dict(start)
        self.statistics = [
            {n: value.clone() for n, value in self.model.named_buffers() if '.bn' in n}
            for _ in range(num_ranks)
        ]
        self.trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.moments = {n: (torch.zeros_like(p),) * 2 for n, p in self.trained.items()}
        self.preprocess_with = tiny_model()  # in float32, so that views are those of the ranks

    def train(self):
        """Take the steps and return what every rank would record."""
        record = dict(losses=[], gradients=[], weights=[])
        for step in range(STEPS):
            self.move_momentum_encoder()
            losses = self.losses(step)
            totals = [sum(values.values()) for values in losses]
            (sum(totals) / len(totals)).backward()
            self.detach_into(record, losses)
            self.step_adamw(step + 1)
            record['weights'].append(clone(dict(self.model.named_parameters())))
        self.model.eval()
        record['evaluated'] = self.losses(STEPS)
        return record

    def detach_into(self, record, losses):
        record['losses'].append([clone(values) for values in losses])
        record['gradients'].append(clone({n: p.grad for n, p in self.trained.items()}))

    def losses(self, step):
        """The five losses of each rank, against the keys of all."""
        ranks = range(len(self.statistics))
        inputs = [prepare(self.preprocess_with, rank, step) for rank in ranks]
        keys = {name: [] for name in ('view_1', 'view_2', 'mixed_view_1')}
        for rank in ranks:
            self.take_statistics(rank)
            with torch.no_grad():
                for name, parts in keys.items():
                    parts.append(self.key(inputs[rank][name]))
            self.keep_statistics(rank)
        k1, k2, k1_mixed = (torch.cat(parts) for parts in keys.values())
        losses = []
        for rank in ranks:
            self.take_statistics(rank)
            losses.append(self.losses_of(rank, inputs[rank], k1, k2, k1_mixed))
            self.keep_statistics(rank)
        return losses

    def losses_of(self, rank, views, k1, k2, k1_mixed):
        def ce(queries, keys, target):
            rows = naive_rows(target, NUM_IMAGES, len(keys), 0.0, rank)
            return naive_contrast(queries, keys, rows, TEMPERATURE)

        q1 = self.query(views['view_1'])
        q2_mixed = self.query(views['mixed_view_2'])
        local = self.query(views['local_views'].flatten(0, 1))
        local_mixed = self.query(views['mixed_local_views'].flatten(0, 1))
        target = views['local_mix_to_source']
        return {
            'loss_source': ce(q1, k2, None),
            'loss_mix_source': ce(q2_mixed, k1, views['mix_to_source']) / 2,
            'loss_mix_mix': ce(q2_mixed, k1_mixed, views['mix_to_mix']) / 2,
            'loss_local': ce(local, k1, None) + ce(local, k2, None),
            'loss_mix_local': ce(local_mixed, k1, target) + ce(local_mixed, k2, target),
        }

    def query(self, images):
        model = self.model
        return F.normalize(model.head.predictor(model.neck(model.backbone(images.double())))[0])

    def key(self, images):
        encoder = self.model.momentum_encoder
        return F.normalize(encoder.neck(encoder.backbone(images.double()))[0])

    def take_statistics(self, rank):
        # New tensors: a backward may still want those of the rank before.
        for name, value in self.statistics[rank].items():
            module, _, buffer = name.rpartition('.')
            setattr(self.model.get_submodule(module), buffer, value.clone())

    def keep_statistics(self, rank):
        for name, value in self.statistics[rank].items():
            value.copy_(self.model.get_buffer(name))

    @torch.no_grad()
    def move_momentum_encoder(self):
        parameters = dict(self.model.named_parameters())
        for name, parameter in parameters.items():
            if name.startswith('momentum_encoder.'):
                query = parameters[name.removeprefix('momentum_encoder.')]
                parameter.copy_(MOMENTUM * parameter + (1 - MOMENTUM) * query)

    @torch.no_grad()
    def step_adamw(self, number):
        """AdamW as published: https://arxiv.org/abs/1711.05101, algorithm 2."""
        rate, (beta1, beta2) = ADAMW['lr'], ADAMW['betas']
        for name, parameter in self.trained.items():
            first, second = self.moments[name]
            first = beta1 * first + (1 - beta1) * parameter.grad
            second = beta2 * second + (1 - beta2) * parameter.grad**2
            self.moments[name] = first, second
            decay = ADAMW['weight_decay'] if parameter.ndim > 1 else 0.0
            ahead = first / (1 - beta1**number)
            scale = (second / (1 - beta2**number)).sqrt() + ADAMW['eps']
            parameter.copy_(parameter - rate * decay * parameter - rate * ahead / scale)
            parameter.grad = None


def clone(values):
    return {name: value.detach().clone() for name, value in values.items()}
