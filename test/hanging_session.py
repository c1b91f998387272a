"""A session of a small random model that perceives in a process of its own, for an engine."""

from sww_ros.evaluation.random_model import SMALL, random_checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.session import Session

SESSION = 'hanging_session:open_small'


def open_small(model: str, config: SessionConfig) -> Session:
    return Session(random_checkpoint(SMALL, 11, silence_token='<|silence|>', max_steps=200)[1],
                   config)
