"""What a user does while the narrator is busy with something else is not lost."""

from pathlib import Path

from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState
from narrator_harness import NarratorProcess, probing, wait_until


def test_a_prompt_set_while_the_model_loads_is_kept(ros_domain: int, tmp_path: Path):
    with NarratorProcess(tmp_path / 'log.txt', 'model:=slow', 'prompt:=say nothing',
                         'autostart:=false') as narrator, probing() as probe:
        future = probe.begin_call(ChangeState, 'change_state',
                                  transition=Transition(id=Transition.TRANSITION_CONFIGURE))
        narrator.wait_log('loading the model')
        assert probe.state() == State.TRANSITION_STATE_CONFIGURING
        assert not probe.set_parameter('prompt', 'count the squares')
        assert not future.done()
        assert probe.result(future).success
        assert probe.change(Transition.TRANSITION_ACTIVATE)
        assert probe.ask('prompt', wait=True).answer == 'count the squares'
        assert not probe.set_parameter('prompt', '')
        wait_until(lambda: probe.ask('prompt', wait=True).answer == 'Describe.')
