"""The narrator: a lifecycle node that watches an image topic, speaks, and answers questions."""

from __future__ import annotations

from collections.abc import Callable
import functools
import sys

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_srvs.srv import SetBool, Trigger

from sww_interfaces.msg import TextChunk
from sww_interfaces.srv import SetPrompt
from sww_ros import nodes
from sww_ros.engine.client import SESSION, EngineClient, EngineError
from sww_ros.engine.supervision import Limits
from sww_ros.frames import CameraFrame
from sww_ros.node import declare, read, run
from sww_ros.nodes.camera import Annotator, Camera
from sww_ros.nodes.diagnostics import Alarm, Health, judge_camera, resident_bytes, statuses
from sww_ros.nodes.lifecycle import SERVICE_QOS, ManagedNode, Responder, logged
from sww_ros.nodes.questions import MAX_WAITERS, Questions
from sww_ros.nodes.reporting import Reporter, TextPublisher

NAME = 'narrator'
SHORT_CALLBACKS = 6
"""Threads for the callbacks that never wait; those that may have theirs beside."""

HEALTH_S = 1.0
"""How often the frames are judged where no diagnostics are published."""

CLOCK_JUMP = JumpThreshold(min_forward=None, min_backward=Duration(seconds=-0.5),
                           on_clock_change=False)


def answered(serve: Callable) -> Callable:
    """Decorate what serves a request: the message that it returns, or why not, is the response."""
    @functools.wraps(serve)
    def respond(self: Narrator, request, response):
        try:
            response.message, response.success = serve(self, request), True
        except (ValueError, EngineError) as error:
            response.message = str(error)
        return response
    return respond


class Narrator(ManagedNode):
    """
    Configure loads the model, activate watches and speaks, cleanup frees the model.

    :param session: 'module:callable' that opens the engine's session
    """

    def __init__(self, session: str = SESSION) -> None:
        super().__init__(NAME)
        declare(self, nodes.SETTINGS)
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(self._apply_parameters)
        self._session = session
        self._engine: EngineClient | None = None
        self._active = self._watched_before = self._released = False
        self._trouble = ''

        group = MutuallyExclusiveCallbackGroup()
        self._camera = Camera(
            self, MutuallyExclusiveCallbackGroup(), on_frame=self._feed, on_drop=self._drop,
            on_restart=self._reset_engine)
        self._responder = responder = Responder(self)
        self._questions = Questions(self, self._active_engine, responder)
        annotator = Annotator(self, self._camera, self.get_parameter('annotation_rate').value)
        self._reporter = Reporter(self, self._camera, TextPublisher(self, self._camera),
                                  self._questions.answers, annotator.subtitle)
        for kind, service, serve in ((SetPrompt, '~/set_prompt', self._serve_prompt),
                                     (Trigger, '~/reset', self._serve_reset),
                                     (SetBool, '~/pause', self._serve_pause)):
            responder.attend(self.create_service(
                kind, service, serve, qos_profile=SERVICE_QOS, callback_group=group))
        self._alarm = Alarm(self.get_logger())
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._jumps = self.get_clock().create_jump_callback(
            CLOCK_JUMP, post_callback=lambda _: self._begin_anew('the clock jumped back'))

        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._period = self.get_parameter('diagnostics_period').value
        self.create_timer(self._period or HEALTH_S, self._check_health, group, clock=steady)
        if self.get_parameter('autostart').value:
            self._autostart = self.create_timer(
                1e-3, self._start, MutuallyExclusiveCallbackGroup(), clock=steady)

    def release(self) -> None:
        self._released = True
        self._stop()

    def destroy_node(self) -> None:
        self._questions.close()
        self._responder.close()
        super().destroy_node()

    # Transitions.

    @logged
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        values = read(self, nodes.SETTINGS)
        log = self.get_logger()
        try:
            config = nodes.session_config(values)
            limits = Limits(silence=values['silence_timeout'], work=values['work_timeout'])
            self._engine = EngineClient(
                values['model'], config, session=self._session, limits=limits,
                restart=values['restart_engine'], on_event=self._reporter.take,
                on_lost=self._engine_lost, on_ready=self._engine_ready, on_line=log.debug)
            if self._released:  # Before there was an engine to close.
                raise EngineError('the engine was closed')
            log.info(f'loading the model {values["model"]}')
            self._engine.start(values['load_timeout'])
        except (EngineError, ValueError) as error:
            self._engine = None
            if self._released:
                log.info('the node ends: the model is not loaded')
                return TransitionCallbackReturn.FAILURE
            self._trouble = str(error)
            log.error(f'cannot load the model: {error}')
            return TransitionCallbackReturn.FAILURE
        self._reporter.begin()
        self._watched_before = False
        return TransitionCallbackReturn.SUCCESS

    @logged
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        if (engine := self._engine) is None:  # The node ends.
            return TransitionCallbackReturn.FAILURE
        super().on_activate(state)
        if self._watched_before:
            engine.reset()  # What was seen before the break is of no use now.
        engine.pause(False)
        self._active = self._watched_before = True
        self._camera.subscribe(self.get_parameter('image_transport').value,
                               engine.info['frame_rate'])
        self.warn_of_unknown_parameters()  # The names of the topic's QoS are known now.
        return TransitionCallbackReturn.SUCCESS

    @logged
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._active = False
        self._camera.unsubscribe()
        if (engine := self._engine) is not None:
            engine.pause(True)
            self._questions.end_all(engine, TextChunk.FINISH_DEACTIVATED)
        return super().on_deactivate(state)

    @logged
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._free_engine()
        return TransitionCallbackReturn.SUCCESS

    @logged
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.release()
        return TransitionCallbackReturn.SUCCESS

    @logged
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop()
        return TransitionCallbackReturn.SUCCESS

    def _start(self) -> None:
        self._autostart.cancel()
        if not (self.change(self.trigger_configure) and self.change(self.trigger_activate)):
            self.end(1)

    def _stop(self) -> None:
        self._active = False
        self._camera.unsubscribe()
        self._free_engine()

    def _free_engine(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    # What the engine and the camera tell.

    def _engine_ready(self, info: dict) -> None:
        self._trouble = ''
        self._camera.begin_anew()
        self.get_logger().info(
            f'the model {info["model"]} runs on {info["device"]} ({info["dtype"]}, '
            f'{info["position_encoding"]}, wait-{info["wait_k"]}, {info["frame_rate"]:g} frames '
            f'per second); a step takes about {info.get("step_seconds", 0):.2g} s here, a token '
            f'{info.get("token_seconds", 0):.2g} s')
        if info.get('relay'):
            self.get_logger().info(info['relay'])
        if info.get('overlap_why'):
            self.get_logger().info(f'overlap {info["overlap"]}: {info["overlap_why"]}')
        for kind in ('mismatch', 'warning'):
            if info.get(kind):
                self.get_logger().warning(info[kind])

    def _engine_lost(self, report: str) -> None:
        self._trouble = report.partition('\n')[0]
        self.get_logger().error(report)

    def _feed(self, frame: CameraFrame) -> None:
        if (engine := self._engine) is not None:
            engine.feed(frame)

    def _drop(self, reason: str) -> None:
        self._reporter.drop(reason)

    def _begin_anew(self, reason: str) -> None:
        self._camera.begin_anew()
        self._reset_engine(reason)

    def _reset_engine(self, reason: str) -> None:
        if self._active and (engine := self._engine) is not None:
            self.get_logger().warning(f'{reason}: the stream is reset')
            engine.reset()

    def _active_engine(self) -> EngineClient:
        engine = self._engine
        if engine is None or not self._active:
            raise EngineError(f'the narrator is {self.state}: activate it first')
        return engine

    # Services and parameters.

    @answered
    def _serve_prompt(self, request: SetPrompt.Request) -> str:
        engine = self._active_engine()
        prompt = (request.prompt or self.get_parameter('prompt').value
                  or engine.info['default_prompt'])
        engine.set_prompt(prompt)
        return f'the stream begins anew with: {prompt}'

    @answered
    def _serve_reset(self, request: Trigger.Request) -> str:
        self._active_engine()
        self._begin_anew('reset requested')
        return ''

    @answered
    def _serve_pause(self, request: SetBool.Request) -> str:
        self._active_engine().pause(request.data)
        self._camera.paused = request.data
        return 'paused' if request.data else 'watching'

    def _check_parameters(self, changes: list[Parameter]):
        return nodes.check(
            changes, read(self, nodes.SETTINGS), self._engine is not None)

    def _apply_parameters(self, changes: list[Parameter]) -> None:
        for parameter in changes:
            if parameter.name == 'prompt' and (engine := self._engine) is not None:
                engine.keep_prompt(parameter.value)

    def _check_health(self) -> None:
        engine = self._engine
        health = Health(
            state=self.state, trouble=self._trouble,
            camera_timeout=self.get_parameter('camera_timeout').value,
            open_questions=len(self._questions.answers))
        if engine is not None:
            health.info, health.restarts = engine.info, engine.restarts
            health.engine_memory, health.doing = resident_bytes(engine.pid), engine.doing
        self._reporter.health(health)
        self._alarm.take(judge_camera(health))
        if self._period:
            self._publish_diagnostics(health)

    def _publish_diagnostics(self, health: Health) -> None:
        name = self.get_fully_qualified_name().lstrip('/')
        message = DiagnosticArray(status=statuses(name, health))
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)


def main(args: list[str] | None = None, *, session: str = SESSION) -> None:
    """Run the narrator until Ctrl-C or SIGTERM; `session` opens the engine's session."""
    sys.exit(run(NAME, lambda: Narrator(session), args, threads=SHORT_CALLBACKS + MAX_WAITERS))


if __name__ == '__main__':
    main()
