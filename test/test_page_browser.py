"""
The live page in a real browser: what a person sees of two narrators, one of them with its model.

`PAGE_PNG=docs/page.png scripts/run python -m pytest test/test_page_browser.py` writes the picture
of the README too. It needs Debian's chromium and chromium-driver, or Chrome with its driver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import os
from pathlib import Path
import re
import shutil
import signal
import socket
import sys

from conftest import ROOT, claim_domain
import cv2
from narrator_harness import FAKE, NarratorProcess
import numpy as np
import pytest
from waiting import wait_until

webdriver = pytest.importorskip('selenium.webdriver', reason='selenium drives the browser')

CHROME = shutil.which('chromium') or shutil.which('google-chrome') or ''
DRIVER = shutil.which('chromedriver') or ''
pytestmark = pytest.mark.skipif(
    not (CHROME and DRIVER), reason='no browser is installed: apt-get install chromium '
    'chromium-driver')

FRONT, REAR = 0, 1
DESKTOP, PHONE = (1440, 900), (390, 844)


class Stage:
    """Two cameras with a narrator each, the page that shows them, and a browser."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(('127.0.0.1', 0)) as free:
            self.port = free.getsockname()[1]
        self._folder = folder
        self.processes: dict[str, NarratorProcess] = {}
        self.start('page', 'sww_ros.nodes.page', '', "narrators:='/front/narrator /rear/narrator'",
                   f'port:={self.port}')
        for number, side in enumerate(('front', 'rear')):
            self.start(f'{side} camera', 'sww_ros.nodes.shapes_camera', side,
                       f'seed:={299 + number}', 'duration:=120.0', 'wait_for_subscriber:=true')
        self.start('front', 'sww_ros.nodes.narrator', 'front', 'overlap:=fused')
        self.start_rear()
        self.processes['page'].wait_log('the page is at')
        self.driver = browser()

    def start(self, name: str, module: str, side: str, *parameters: str) -> None:
        """Start a node, or start it again; without a module it is the narrator without a model."""
        command = [sys.executable, '-m', module] if module else FAKE
        space = ('-r', f'__ns:=/{side}') if side else ()
        self.processes[name] = NarratorProcess(
            self._folder / f'{name}.txt', *parameters, command=command, arguments=space)

    def start_rear(self) -> None:
        self.start('rear', '', 'rear')

    def kill(self, name: str) -> None:
        self.processes[name].process.send_signal(signal.SIGKILL)
        self.processes[name].process.wait()

    def close(self) -> None:
        self.driver.quit()
        for process in self.processes.values():
            process.__exit__()

    # What is on the page.

    def js(self, code: str, *arguments: object) -> object:
        return self.driver.execute_script(code, *arguments)

    def text(self, selector: str) -> str:
        """Return what can be read there now."""
        return self.js('return document.querySelector(arguments[0])?.textContent ?? ""', selector)

    def texts(self, selector: str) -> list[str]:
        return self.js('return [...document.querySelectorAll(arguments[0])]'
                       '.map((found) => found.textContent)', selector)

    def until(self, condition: Callable[[], object]) -> None:
        wait_until(condition, explain=lambda: self.text('body'))

    def visit(self, tab: int = FRONT, size: tuple[int, int] = DESKTOP,
              scheme: str = 'light') -> None:
        """Load the page and show a tab."""
        self.driver.execute_cdp_cmd('Emulation.setEmulatedMedia', {
            'features': [{'name': 'prefers-color-scheme', 'value': scheme}]})
        self.driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', dict(
            width=size[0], height=size[1], deviceScaleFactor=1, mobile=size == PHONE))
        self.driver.get(f'http://localhost:{self.port}/')
        self.until(lambda: len(self.texts('#tabs button')) == 2)
        self.js('document.querySelectorAll("#tabs button")[arguments[0]].click()', tab)

    def ask(self, question: str) -> None:
        """Type a question into the box, and press Enter."""
        box = self.driver.find_element('id', 'question')
        box.send_keys(question, '\n')

    def card(self, question: str) -> list[str]:
        """Return the class, answer and remarks of a question's card; empty if it is not there."""
        return self.js(
            'const card = [...document.querySelectorAll("#answers article")].find('
            '(one) => one.firstChild.textContent === arguments[0]);'
            'return card ? [card.className, ...[...card.children].slice(1).map('
            '(part) => part.textContent)] : []', question)

    def wait_answer(self, question: str) -> str:
        self.until(lambda: self.card(question) and not self.card(question)[0])
        return self.card(question)[1]

    def shot(self, path: Path) -> np.ndarray:
        """Write a picture of the page, and return it, (height, width, 3)."""
        self.driver.save_screenshot(str(path))
        return cv2.imread(str(path))


def browser() -> webdriver.Chrome:
    """Return a headless browser without a window, a network or a profile."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROME
    # Root has no sandbox of its own; in a container there is little shared memory.
    for argument in ('--headless=new', '--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu',
                     '--disable-background-networking', '--no-first-run', '--lang=en'):
        options.add_argument(argument)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    return webdriver.Chrome(options, webdriver.ChromeService(DRIVER))


@pytest.fixture(scope='module')
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    domain, lock = claim_domain()
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp('stage')
        for name, value in (('ROS_DOMAIN_ID', domain), ('ROS_LOG_DIR', folder / 'ros_log'),
                            ('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST'),
                            ('FASTRTPS_DEFAULT_PROFILES_FILE', ROOT / 'config/fastdds_shm.xml')):
            patch.setenv(name, str(value))
        made = Stage(folder)
        try:
            yield made
        finally:
            made.close()
            os.close(lock)


def test_sentences_grow_token_by_token(stage: Stage):
    stage.visit()
    stage.js('window.grown = new Set(); const place = document.querySelector("#subtitle");'
             'new MutationObserver(() => grown.add(place.textContent)).observe('
             'place, {childList: true, characterData: true, subtree: true})')
    stage.until(lambda: len(stage.texts('#lines li')) > 3)
    grown = [text for text in stage.js('return [...grown]') if text]
    whole = [text for text in grown if text.endswith('.')]
    parts = [text for text in grown if any(one.startswith(text) and one != text for one in whole)]
    assert whole and parts, grown
    assert set(stage.texts('#lines li:not(.open) .words')) & set(whole)


def test_a_word_is_on_the_page_soon_after_its_publication(stage: Stage):
    stage.visit()
    stage.until(lambda: stage.js('return words.length') > 20)
    late_s = sorted(shown - published for published, shown in stage.js('return words'))
    print(f'a word is on the page {1e3 * late_s[len(late_s) // 2]:.0f} ms after its publication, '
          f'95 % within {1e3 * late_s[int(len(late_s) * .95)]:.0f} ms')
    assert 0 <= late_s[0] and late_s[len(late_s) // 2] < 10


def test_questions_are_answered_side_by_side_while_it_narrates(stage: Stage):
    stage.visit()
    questions = ['How many shapes are there?', 'Is there a red circle?']
    for question in questions:
        stage.ask(question)
    for question in questions:
        assert re.fullmatch(r'\w[^<>]*\.', stage.wait_answer(question))
        assert 'first word after' in stage.card(question)[2]
    assert stage.text('#reply') == ''


def test_an_answer_streams_beside_another_and_beside_the_narration(stage: Stage):
    stage.visit(REAR)
    stage.ask('long'), stage.ask('until /never')
    stage.until(lambda: stage.card('long') and stage.card('long')[1].count('on') > 20)
    lines = len(stage.texts('#lines li'))
    assert stage.card('long')[0] == 'open' and stage.card('until /never')[0] == 'open'
    stage.until(lambda: len(stage.texts('#lines li')) > lines)
    assert stage.card('long')[0] == 'open'


def test_what_others_say_is_text_and_nothing_else(stage: Stage):
    stage.visit(REAR)
    evil = '<img src=x onerror="document.title=\'caught\'"><b>bold</b></p><script>alert(1)</script>'
    stage.ask(evil)
    assert stage.wait_answer(evil).strip() == evil
    assert stage.js('return document.querySelectorAll("#answers img, #answers b, #answers script")'
                    '.length') == 0
    assert stage.driver.title == 'Speak while watching'


def test_each_tab_shows_its_own_camera_and_words(stage: Stage):
    stage.visit(REAR)
    stage.until(lambda: stage.texts('#lines li'))
    assert all('step' in line for line in stage.texts('#lines li'))
    stage.until(lambda: stage.js('return lastFrame?.tab') == REAR)
    stage.js('document.querySelectorAll("#tabs button")[0].click()')
    stage.until(lambda: stage.js('return lastFrame?.tab') == FRONT)
    stage.until(lambda: stage.texts('#lines li'))
    assert not any('step' in line for line in stage.texts('#lines li'))
    colours = stage.js('const canvas = document.querySelector("#picture"); return [...canvas.'
                       'getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data]')
    pixels = np.array(colours).reshape(336, 336, 4)
    assert pixels[..., 3].min() == 255 and pixels[..., :3].std() > 5


def test_figures_come_from_the_narrator(stage: Stage):
    stage.visit(REAR)
    stage.until(lambda: 'perceived' in stage.text('#reasons'))
    assert re.search(r'\d+ perceived', stage.text('#reasons'))
    for row in stage.texts('#latency tbody tr'):
        assert re.search(r'\d+(\.\d)?$', row), row
    assert 'engine: active' in stage.text('#health') and 'speech: ' in stage.text('#health')
    assert re.search(r'step \d+: captured, perceived \d+ ms later', stage.text('#step'))


def test_it_is_paused_reset_and_prompted(stage: Stage):
    stage.visit(REAR)
    stage.driver.find_element('id', 'pause').click()
    stage.until(lambda: stage.text('#pause') == 'Go on')
    stage.driver.find_element('id', 'pause').click()
    stage.until(lambda: stage.text('#pause') == 'Pause')
    stage.driver.find_element('id', 'reset').click()
    stage.until(lambda: '[reset]' in ''.join(stage.texts('#lines .lag')))
    stage.driver.find_element('id', 'prompt').click()
    box = stage.driver.find_element('id', 'new-prompt')
    box.clear()
    box.send_keys('Sing.')
    stage.driver.find_element('id', 'set-prompt').click()
    stage.until(lambda: 'Sing.' in stage.text('#reply'))
    stage.ask('prompt')
    assert stage.wait_answer('prompt').strip() == 'Sing.'


def test_a_reload_shows_what_was_said_and_goes_on(stage: Stage):
    stage.visit()
    stage.until(lambda: len(stage.texts('#lines li')) > 3)
    said = stage.texts('#lines li:not(.open) .words')
    for _ in range(3):
        stage.driver.refresh()
    stage.until(lambda: len(stage.texts('#lines li')) > len(said))
    assert stage.texts('#lines li .words')[-len(said):] == said


def test_a_narrator_that_is_gone_is_missed_and_welcomed_back(stage: Stage):
    stage.visit(REAR)
    stage.until(lambda: stage.texts('#lines li'))
    stage.kill('rear')
    stage.until(lambda: '/rear/narrator is not there' in stage.text('#trouble'))
    stage.ask('Anyone?')
    stage.until(lambda: stage.text('#reply') == '/rear/narrator is not there')
    before = stage.texts('#lines li .words')
    stage.start_rear()
    stage.until(lambda: stage.js('return document.querySelector("#trouble").hidden'))
    stage.until(lambda: len(stage.texts('#lines li')) > len(before))


def test_a_page_whose_node_is_gone_says_so_and_comes_back(stage: Stage):
    stage.visit(REAR)
    stage.until(lambda: stage.texts('#lines li'))
    stage.kill('page')
    stage.until(lambda: 'connection to the node is lost' in stage.text('#trouble'))
    stage.start('page', 'sww_ros.nodes.page', '', "narrators:='/front/narrator /rear/narrator'",
                f'port:={stage.port}')
    stage.until(lambda: stage.js('return document.querySelector("#trouble").hidden'))
    stage.until(lambda: stage.texts('#lines li') and stage.js('return lastFrame?.tab') == REAR)


@pytest.mark.parametrize('size', [DESKTOP, PHONE], ids=['desktop', 'phone'])
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_it_fits_and_is_light_or_dark_as_one_likes(
        stage: Stage, tmp_path: Path, size: tuple[int, int], scheme: str):
    stage.visit(FRONT, size, scheme)
    stage.until(lambda: len(stage.texts('#lines li')) > 6 and stage.js('return lastFrame !== null'))
    if shown_to_readers := (size, scheme) == (DESKTOP, 'light'):
        for question in ('How many shapes are there?', 'What colour is the triangle?'):
            stage.ask(question)
            stage.wait_answer(question)
        stage.until(lambda: len(stage.text('#lines li.open .words')) > 12)
    assert stage.js('return document.documentElement.scrollWidth') <= size[0]
    path = tmp_path / f'{scheme}-{size[0]}.png'
    picture = stage.shot(Path(os.environ.get('PAGE_PNG', path)) if shown_to_readers else path)
    assert picture.shape == (size[1], size[0], 3)
    assert picture[-3:, :3].mean() > 220 if scheme == 'light' else picture[-3:, :3].mean() < 40


def test_nothing_was_loaded_from_elsewhere_and_nothing_went_wrong(stage: Stage):
    stage.visit()
    loaded = stage.js('return performance.getEntriesByType("resource").map((one) => one.name)')
    assert {re.match(r'\w+://[^/]+', name)[0] for name in loaded} == {
        f'http://localhost:{stage.port}'}
    wrong = [line['message'] for line in stage.driver.get_log('browser')
             # While its node was gone.
             if line['level'] == 'SEVERE' and 'ERR_CONNECTION_REFUSED' not in line['message']]
    assert not wrong
    for name, process in stage.processes.items():
        assert 'Traceback' not in process.log, (name, process.log)
