"""
A toy family: Qwen2.5-VL's own model, asked in turns of another kind.

Each step of video has its time written before it and is closed after it, as in Qwen3-VL's and
StreamingVLM's turns; the user's turn ends in another way.
"""

from dataclasses import dataclass

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from sww_ros.models.qwen2_5_vl import Qwen25VL
from sww_ros.models.qwen2_5_vl.turns import ChatTurns


class ToyConfig(Qwen2_5_VLConfig):
    model_type = 'toy_vl'


class ToyModel(Qwen2_5_VLForConditionalGeneration):
    config_class = ToyConfig


@dataclass(frozen=True)
class ToyTurns(ChatTurns):
    tail: str = 'over<|im_end|>\n'

    def prefix(self, system, prompt, said=''):
        return f'<|im_start|>{system}\n<|im_start|>user\n', prompt, '\n'

    def around_step(self, step):
        return (f'{step.index * step.seconds:.1f} s<|vision_start|>',), ('<|vision_end|>',)


class Toy(Qwen25VL):
    name = 'Toy-VL'
    turns = ToyTurns()
    config_class = ToyConfig
    model_class = ToyModel


FAMILY = Toy()
