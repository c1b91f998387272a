"""What tests of the training share: small checkpoints, clips, an engine that is told its words."""

from contextlib import ExitStack, contextmanager
import copy
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
import time
import warnings

import numpy as np
import torch
import torch.nn.functional as F

from sww_ros.demo.processes import children
from sww_ros.evaluation.random_model import SMALL, random_model
from sww_ros.models.loading import take_apart
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import Trouble
from sww_ros.streaming.generation import TextLane
from sww_ros.streaming.schedule import make_schedule
from sww_ros.streaming.session import Session
from sww_ros.training.clips import ClipMaker
from sww_ros.training.frames import Sample
from sww_ros.training.model import Loss, prepare
from sww_ros.training.recipe import Recipe

DATA = Path(__file__).parent / 'data/clips'
PREPROCESSOR = 'preprocessor_config.json', dict(
    size=dict(shortest_edge=56 * 56, longest_edge=84 * 84))
MAX_STEPS = 9
ENDS_S = 300.0
"""A training of two processes takes 15 s, on a busy machine a minute."""


class Bench:
    """A random model, or one of another shape, with all that a recipe makes of it."""

    def __init__(self, shape=SMALL, **changes):
        self.net, self.tokenizer = random_model(shape, 3, max_steps=MAX_STEPS,
                                                **changes.pop('entry', {}))
        with torch.device('meta'):
            shell = type(self.net)(self.net.config)
        self.about = take_apart(shell, self.tokenizer, preprocessor=PREPROCESSOR)
        self.take(**changes)

    def take(self, **changes):
        """Turn to another recipe, with the weights as they are."""
        self.recipe = Recipe(model='', data=(DATA / 'pe_video.jsonl',), out=Path('unused'),
                             **changes)
        self.model = prepare(self.net, self.about, self.recipe)
        self.maker = ClipMaker(self.about, self.net, self.recipe)
        return self

    def loss(self, attention='sdpa') -> Loss:
        return Loss(self.model, attention)

    def clip(self, answer: str, frames: np.ndarray, seed: int = 0, prompt: str = 'Say.', **timed):
        return self.maker.make(Sample(Path('none'), prompt, answer, **timed), frames, seed)

    def live(self, answer: str, frames: np.ndarray, seed: int = 0, prompt: str = 'Say.', **timed):
        """Return the trace of an engine that is told this answer, and its mean cross-entropy."""
        recipe = self.recipe
        checkpoint = take_apart(copy.deepcopy(self.net).eval(), self.tokenizer,
                                preprocessor=PREPROCESSOR)
        config = SessionConfig(
            position_encoding=recipe.position_encoding, position_gap=recipe.position_gap,
            schedule=recipe.schedule, wait_k=recipe.wait_k, schedule_seed=seed, prompt=prompt,
            record_trace=True)
        words = self.maker.words(
            Sample(Path('none'), prompt, answer, **timed),
            make_schedule(recipe.schedule, recipe.wait_k, seed), len(frames) // 2).answer
        with told(words) as costs, Session(checkpoint, config) as session:
            for index, frame in enumerate(frames):
                session.feed(frame, last=index == len(frames) - 1)
                # One step after the other, so that what is seen does not depend on the clock.
                assert session.wait_idle(30)
            trouble = [e for e in session.drain() if isinstance(e, Trouble)]
            assert not trouble, trouble
            trace = session.trace()
        assert len(costs) == len(words), 'the engine did not say all of it'
        return trace, float(torch.stack(costs).mean())


@contextmanager
def told(words):
    """Make text lanes say `words` whatever the model would; yields the cost of each."""
    costs, honest = [], TextLane.choose

    def choose(lane, logits, *of):
        index = len(costs)
        if index < len(words):
            costs.append(F.cross_entropy(logits[None].float(), torch.tensor([words[index]]))[None])
            logits = F.one_hot(torch.tensor(words[index]), len(logits)).float()
        return honest(lane, logits, *of)

    TextLane.choose = choose
    try:
        yield costs
    finally:
        TextLane.choose = honest


def noise(steps: int, height: int = 60, width: int = 84, seed: int = 0) -> np.ndarray:
    """Frames of `steps` steps."""
    return np.random.default_rng(seed).integers(0, 256, (2 * steps, height, width, 3), np.uint8)


def torchrun(*arguments: str, out: Path, nodes: int = 1) -> Path:
    """
    Train in two processes, and return the folder under `out` that they wrote.

    With two nodes each process has an agent of its own, as on another machine. Where they do not
    end, all say on stderr where they stand, and it is done once more: torchrun was seen once, in
    hundreds of runs, not to end although its processes had saved what they had.
    """
    for folder in (out / 'first', out / 'second'):
        with socket.create_server(('localhost', 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, '-m', 'torch.distributed.run', '--nnodes', str(nodes),
                   '--nproc-per-node', str(2 // nodes), '--rdzv-backend', 'c10d',
                   '--rdzv-endpoint', f'localhost:{port}', '--rdzv-id', folder.name,
                   '-m', 'sww_ros.training', *arguments, '--out', str(folder)]
        with ExitStack() as stack:
            agents = [stack.enter_context(subprocess.Popen(
                command, cwd=DATA.parents[2], env=os.environ | dict(PYTHONFAULTHANDLER='1')))
                for _ in range(nodes)]
            end = time.monotonic() + ENDS_S
            try:
                assert [agent.wait(max(0.0, end - time.monotonic()))
                        for agent in agents] == [0] * nodes
                return folder
            except subprocess.TimeoutExpired:
                pass
            finally:
                # Aborted, each says where it stands.
                for agent in agents:
                    if agent.poll() is None:
                        for pid in (*children(agent.pid), agent.pid):
                            os.kill(pid, signal.SIGABRT)
                        agent.wait(ENDS_S)
        warnings.warn(f'torchrun had not ended after {ENDS_S:g} s', stacklevel=2)
    raise TimeoutError(f'torchrun did not end in {ENDS_S:g} s, twice')
