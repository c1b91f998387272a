// The live page: keeps what the node tells of each tab, and draws the tab that is shown.
// Whatever was said by others goes into the page as text (textContent), never as markup.
'use strict';

const LINES = 200, ANSWERS = 24, STEPS = 256, TOKENS = 3000;
const SPANS_S = [2, 10, 60];
const ODD_ENDS = ['error', 'cancelled', 'interrupted', 'length', 'no_video', 'reset', 'prompt',
                  'capacity', 'deactivated', 'timeout', 'lost'];
const STAGES = [
  ['captured → perceived', (s) => s.perceived - s.captured],
  ['perceived → first word', (s) => s.first === null ? null : s.first - s.perceived],
  ['captured → first word', (s) => s.first === null ? null : s.first - s.captured],
];
const WHY = {
  rate: 'the camera is faster than the model', stamp: 'their stamps were not newer',
  overrun: 'newer ones came first: the machine is too slow', bad: 'they could not be read',
  paused: 'it was paused', reset: 'the stream began anew', engine: 'the engine was restarted',
};

const byId = (id) => document.getElementById(id);
const put = (element, text) => {
  if (element.textContent !== text) element.textContent = text;
};
const make = (tag, name, text = '') => {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.textContent = text;
  return element;
};
const clock = () => performance.now() / 1000;

// What is known of a tab.

class Tab {
  constructor(name) {
    this.name = name;
    this.here = null;
    this.offset = null;
    this.clear();
  }

  clear() {
    this.lines = [];
    this.answers = new Map();
    this.next = new Map();
    this.steps = [];
    this.tokens = [];
    this.delays = [];
    this.health = {};
  }

  // The present on the clock of the tab's stamps [s].
  now() {
    return clock() + (this.offset ?? 0);
  }

  pulse(message) {
    const offset = message.now - clock(), ahead = offset - (this.offset ?? Infinity);
    // The one that was fastest on its way is nearest to the truth; clocks drift, and may jump.
    this.offset = ahead > 0 || !(ahead > -0.5) ? offset : this.offset + 0.02 * ahead;
    if (this.here && !message.here) this.lose();
    this.here = message.here;
  }

  // What it was about to say will not be said.
  lose() {
    if (this.lines[0]?.open) this.end(this.lines[0], 'lost');
    for (const answer of this.answers.values()) if (answer.open) this.end(answer, 'lost');
    this.next.clear();
  }

  text(message) {
    const stream = message.stream, narration = stream === 'narration';
    const text = narration ? this.line(message) : this.answer(stream);
    const expected = this.next.get(stream);
    const gap = expected !== undefined && message.seq > expected ? '…' : '';
    this.next.set(stream, message.seq + 1);
    if (message.delta) {
      text.at ??= message.at;
      text.words += text.fresh + gap;
      text.fresh = message.delta;
      this.tokens.push({stream, at: message.at, text});
      if (this.tokens.length > TOKENS) this.tokens.splice(0, TOKENS / 10);
    }
    if (message.delta && !catchingUp) {
      this.delays.push(Math.max(0, this.now() - message.at));
      if (this.delays.length > STEPS) this.delays.shift();
    }
    if (message.end) {
      this.next.delete(stream);
      this.end(text, message.end);
    } else if (narration && message.sentence) {
      this.end(text, '');
    }
  }

  // The line that grows; a new one where none does.
  line(message) {
    if (!this.lines[0]?.open) {
      if (!message.delta && !ODD_ENDS.includes(message.end)) return {words: '', fresh: ''};
      this.lines.unshift({stream: 'narration', words: '', fresh: '', open: true, end: '',
                          at: message.at, seen: message.seen});
      this.lines.length = Math.min(this.lines.length, LINES);
    }
    return this.lines[0];
  }

  answer(stream) {
    if (!this.answers.has(stream)) {
      this.answers.set(stream, {
        stream, question: '', words: '', fresh: '', open: true, end: '', asked: null});
      if (this.answers.size > ANSWERS) this.answers.delete(this.answers.keys().next().value);
    }
    return this.answers.get(stream);
  }

  question(message) {
    const answer = this.answer(message.stream);
    answer.question = message.text;
    answer.asked = message.at;
    answer.drawn = null;
  }

  end(text, why) {
    text.words += text.fresh;
    text.fresh = '';
    text.open = false;
    text.end = ODD_ENDS.includes(why) ? why : '';
  }

  step(message) {
    this.steps.push(message);
    if (this.steps.length > STEPS) this.steps.shift();
  }

  get paused() {
    return this.health.camera?.words === 'paused';
  }
}

// The connection.

let tabs = [], shown = 0, socket = null, wait = 500, number = 0, trouble = '';
let catchingUp = false;  // While the past is told, of which no delay is to be measured.
const words = [];  // [published, put on the page] of the last narrated tokens [s], as it was here.

function connect() {
  const token = encodeURIComponent(location.hash.slice(1));
  const scheme = location.protocol === 'https:' ? 'wss:' : 'ws:';
  socket = new WebSocket(`${scheme}//${location.host}/feed?token=${token}`);
  socket.binaryType = 'arraybuffer';
  socket.onmessage = (event) => {
    if (typeof event.data === 'string') hear(JSON.parse(event.data));
    else see(event.data);
  };
  socket.onclose = (event) => {
    wait = Math.min(wait * 1.5, 4000);
    trouble = {
      4401: 'This page needs its token: open the address that the node has logged.',
      4429: 'As many browsers watch as the node allows (max_browsers).',
    }[event.code] ?? 'The connection to the node is lost: trying again…';
    draw();
    setTimeout(connect, wait);
  };
}

function say(what) {
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(what));
}

function act(what, text = '') {
  number += 1;
  put(byId('reply'), '');
  say({do: what, tab: shown, text, number});
}

function watch() {
  say({do: 'watch', tab: document.hidden ? -1 : shown});
}

function hear(messages) {
  const heard = [];
  catchingUp = messages[0].kind === 'hello';
  for (const message of messages) {
    if (message.kind === 'hello') greet(message.tabs);
    else if (message.kind === 'reply') put(byId('reply'), message.words);
    else if (message.kind === 'skipped') console.warn(`${message.count} messages were skipped`);
    else {
      const tab = tabs[message.tab];
      if (message.kind === 'anew') tab.clear();
      else if (message.kind === 'health') tab.health = message.parts;
      else tab[message.kind]?.(message);
      if (message.kind === 'text' && message.delta && !catchingUp) heard.push(message.at);
    }
  }
  draw();
  const now = Date.now() / 1000;
  for (const at of heard) words.push([at, now]);
  words.splice(0, words.length - 1000);
}

function greet(names) {
  tabs = names.map((name) => new Tab(name));
  shown = Math.min(shown, tabs.length - 1);
  wait = 500;
  trouble = '';
  lastFrame = null;
  watch();
}

// The picture.

let lastFrame = null;

async function see(data) {
  const view = new DataView(data);
  const tab = view.getUint8(0), stamp = view.getFloat64(1);
  try {
    const image = await createImageBitmap(new Blob([data.slice(9)], {type: 'image/jpeg'}));
    if (tab === shown) {
      const canvas = byId('picture');
      if (canvas.width !== image.width || canvas.height !== image.height) {
        canvas.width = image.width;
        canvas.height = image.height;
      }
      canvas.getContext('2d').drawImage(image, 0, 0);
      lastFrame = {tab, stamp};
      byId('nothing').hidden = true;
    }
    image.close();
  } finally {
    say({do: 'shown'});
  }
}

// What is said.

function draw() {
  const tab = tabs[shown];
  drawTrouble(tab);
  if (!tab) return;
  drawTabs();
  byId('nothing').hidden = lastFrame?.tab === shown;
  drawText(byId('subtitle'), tab.lines[0] ?? {words: '', fresh: ''});
  drawLines(tab);
  drawAnswers(tab);
  drawFigures(tab);
  const pause = byId('pause');
  pause.setAttribute('aria-pressed', tab.paused);
  put(pause, tab.paused ? 'Go on' : 'Pause');
}

function drawTrouble(tab) {
  const lost = tab?.here === false ? `${tab.name} is not there: waiting for it…` : '';
  byId('trouble').hidden = !(trouble || lost);
  put(byId('trouble'), trouble || lost);
}

function drawTabs() {
  const row = byId('tabs');
  tabs.forEach((tab, index) => {
    let button = row.children[index];
    if (!button) {
      button = make('button');
      button.type = 'button';
      button.setAttribute('role', 'tab');
      button.append(make('i', 'dot'), make('span'));
      button.onclick = () => show(index);
      row.append(button);
    }
    button.setAttribute('aria-selected', index === shown);
    button.firstChild.className = `dot ${tab.here ? 'good' : 'bad'}`;
    put(button.lastChild, tab.name);
  });
  while (row.children.length > tabs.length) row.lastChild.remove();
}

function show(index) {
  shown = index;
  lastFrame = null;
  const canvas = byId('picture');
  canvas.getContext('2d').clearRect(0, 0, canvas.width, canvas.height);
  byId('lines').replaceChildren();
  byId('answers').replaceChildren();
  put(byId('reply'), '');
  watch();
  draw();
}

// The newest token in a colour of its own.
function drawText(element, text) {
  if (!element.firstChild) element.append(make('span'), make('span', 'new'));
  put(element.firstChild, text.words.trimStart());
  put(element.lastChild, text.words ? text.fresh : text.fresh.trimStart());
  if (!text.words && !text.fresh) element.replaceChildren();
}

// Brings the children of a list in line with items that have a place of their own each.
function drawList(list, items, build, update) {
  const wanted = items.map((item) => {
    if (!item.element?.parentNode || item.element.parentNode !== list) item.element = build(item);
    if (item.drawn !== item.element) update(item.element, item);
    item.drawn = item.open ? null : item.element;
    return item.element;
  });
  wanted.forEach((element, index) => {
    if (list.children[index] !== element) list.insertBefore(element, list.children[index] ?? null);
  });
  while (list.children.length > wanted.length) list.lastChild.remove();
}

function drawLines(tab) {
  drawList(byId('lines'), tab.lines, () => {
    const line = make('li');
    line.append(make('time'), make('span', 'words'), make('span', 'lag'));
    return line;
  }, (line, text) => {
    line.className = text.open ? 'open' : '';
    put(line.children[0], timeOf(text.at));
    drawText(line.children[1], text);
    put(line.children[2], text.end ? `[${text.end}]` : lag(text.at - text.seen));
  });
  const rate = tab.health.speech?.values?.['tokens per second'];
  put(byId('pace'), rate ? `${rate} tokens a second` : '');
}

function drawAnswers(tab) {
  drawList(byId('answers'), [...tab.answers.values()].reverse(), () => {
    const card = make('article');
    card.append(make('h3'), make('p'), make('span', 'lag'), make('span', 'end'));
    return card;
  }, (card, answer) => {
    card.className = answer.open ? 'open' : '';
    put(card.children[0], answer.question || '(asked elsewhere)');
    drawText(card.children[1], answer);
    put(card.children[2], answer.asked === null || answer.at === undefined ? ''
      : `first word after ${lag(answer.at - answer.asked)}`);
    put(card.children[3], answer.end ? ` [${answer.end}]` : '');
  });
}

function timeOf(at) {
  // The clock of a simulation or a recorded run counts from 0.
  if (at < 1e8) return `${at.toFixed(1)} s`;
  return new Date(at * 1000).toLocaleTimeString([], {hour12: false});
}

function lag(duration) {
  return duration < 1 ? `${Math.round(duration * 1000)} ms` : `${duration.toFixed(1)} s`;
}

// Figures.

function percentile(sorted, share) {
  const at = (sorted.length - 1) * share, low = Math.floor(at);
  return sorted[low] + (at - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
}

function drawFigures(tab) {
  const rows = STAGES.map(([name, of]) => [name, tab.steps.map(of).filter((d) => d !== null)]);
  rows.push(['published → on this page', tab.delays]);
  const body = byId('latency').tBodies[0];
  rows.forEach(([name, durations], index) => {
    const row = body.rows[index] ?? body.insertRow();
    if (!row.cells.length) row.append(make('th'), make('td'), make('td'), make('td'));
    const sorted = [...durations].sort((a, b) => a - b);
    put(row.cells[0], name);
    [0.5, 0.95, 0.99].forEach((share, column) => {
      const value = sorted.length ? 1000 * percentile(sorted, share) : null;
      put(row.cells[column + 1], value === null ? '–' : value.toFixed(value < 100 ? 1 : 0));
    });
  });
  drawFrames(tab.health.camera?.values ?? {});
  drawHealth(tab);
}

function drawFrames(values) {
  const counts = [['perceived', Number(values['frames perceived'] ?? 0), '', '--see']];
  const colours = ['--soft', '--warn', '--bad', '--say', '--answer', '--path'];
  for (const [key, value] of Object.entries(values)) {
    const reason = /^frames dropped \((.+)\)$/.exec(key)?.[1];
    if (!reason) continue;
    const colour = reason === 'rate' ? '--soft' : colours[1 + (counts.length - 1) % 5];
    counts.push([`dropped (${reason})`, Number(value), WHY[reason] ?? '', colour]);
  }
  const bar = byId('frames'), list = byId('reasons');
  bar.replaceChildren();
  list.replaceChildren();
  for (const [name, count, why, colour] of counts) {
    const item = make('li'), dot = make('i', 'dot');
    dot.style.background = `var(${colour})`;
    item.title = why;
    item.append(dot, `${count} ${name}`);
    list.append(item);
    if (count) {
      const part = make('i');
      part.style.flex = count;
      part.style.background = `var(${colour})`;
      bar.append(part);
    }
  }
}

function drawHealth(tab) {
  const items = Object.entries(tab.health).map(([part, {level, words}]) => {
    const item = make('li');
    item.append(make('i', `dot ${['good', 'warn', 'bad'][level] ?? 'bad'}`), `${part}: ${words}`);
    return item;
  });
  byId('health').replaceChildren(...items);
}

// The lanes: time runs to the left; a frame's path goes down from its capture through the lane of
// perceiving to its first word.

let span = SPANS_S[1], pointer = null;
const CAPTURED = 22, SEE = {top: 42}, SAY = {}, ASK = {height: 14};

// Shares the height among the lanes; three rows of answers are enough.
function layOut(height) {
  const left = height - SEE.top - 4 * 18 - 3 * ASK.height;
  SEE.height = 0.45 * left;
  SAY.top = SEE.top + SEE.height + 30;
  SAY.height = 0.55 * left;
  ASK.top = SAY.top + SAY.height + 20;
}

function drawLanes() {
  requestAnimationFrame(drawLanes);
  const canvas = byId('lanes'), tab = tabs[shown];
  const width = canvas.clientWidth, height = canvas.clientHeight, ratio = devicePixelRatio || 1;
  if (!tab || !width) return;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const pen = canvas.getContext('2d'), style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`);
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = '11px system-ui, sans-serif';
  layOut(height);
  const now = tab.now(), from = now - span;
  const x = (at) => (at - from) / span * width;
  drawGrid(pen, colour, x, from, now, width, height);
  drawSentences(pen, colour, tab, x, from, now);
  drawSteps(pen, colour, tab, x, from, now);
}

function drawGrid(pen, colour, x, from, now, width, height) {
  const every = span <= 2 ? 0.25 : span <= 10 ? 1 : 10;
  pen.strokeStyle = colour('line');
  pen.fillStyle = colour('soft');
  pen.lineWidth = 1;
  for (let ago = every; ago < span; ago += every) {
    const at = Math.round(x(now - ago)) + 0.5;
    pen.beginPath();
    pen.moveTo(at, 14);
    pen.lineTo(at, height - 14);
    pen.stroke();
    if (width > 500 || ago % (2 * every) < 1e-6) {
      pen.fillText(`−${ago} s`, at - 12, height - 3);
    }
  }
  for (const [name, top] of [['captured', 11], ['perceiving', SEE.top - 4], ['speaking', SAY.top - 4],
                             ['answers', ASK.top - 4]]) {
    const wide = pen.measureText(name).width;
    pen.fillStyle = colour('card');
    pen.fillRect(0, top - 10, wide + 4, 13);
    pen.fillStyle = colour('soft');
    pen.fillText(name, 0, top);
  }
}

// A block from the first token of a text to its last, a tick for each.
function drawSentences(pen, colour, tab, x, from, now) {
  const texts = new Map();
  for (const token of tab.tokens) {
    if (token.at < from - 5) continue;
    if (!texts.has(token.text)) texts.set(token.text, []);
    texts.get(token.text).push(token.at);
  }
  const rows = [], labels = [];
  for (const [text, times] of texts) {
    const narrated = text.stream === 'narration';
    const start = x(times[0]), last = text.open ? now : times[times.length - 1];
    const end = Math.max(start + 3, x(last));
    let lane = SAY;
    if (!narrated) {
      let row = rows.findIndex((until) => until < start - 4);
      if (row < 0) row = rows.push(0) - 1;
      rows[row] = end + 60;
      lane = {top: ASK.top + (row % 3) * (ASK.height + 3), height: ASK.height};
    }
    const tone = colour(narrated ? 'say' : 'answer');
    pen.globalAlpha = 0.22;
    pen.fillStyle = tone;
    pen.beginPath();
    pen.roundRect(start, lane.top, end - start, lane.height, 4);
    pen.fill();
    pen.globalAlpha = 1;
    for (const at of times) pen.fillRect(x(at), lane.top, 2, lane.height);
    const whole = (text.words + text.fresh).trim();
    labels.push({whole, start, end, lane});
  }
  drawLabels(pen, colour, labels, x(now));
}

// What was said, as far as the next one leaves room.
function drawLabels(pen, colour, labels, width) {
  pen.fillStyle = colour('ink');
  labels.forEach(({whole, start, end, lane}, index) => {
    const next = labels.slice(index + 1).find((other) => other.lane.top === lane.top);
    const room = Math.max(end, next ? next.start - 4 : width);
    let left = Math.max(start, 0) + 6;
    // An answer has just been given, and stands before its ticks for as long as that.
    if (lane !== SAY) left = Math.min(left, width - pen.measureText(whole).width - 6);
    pen.save();
    pen.beginPath();
    pen.rect(Math.min(start, left), lane.top, room - Math.min(start, left), lane.height);
    pen.clip();
    pen.fillText(whole, left, lane.top + lane.height / 2 + 4);
    pen.restore();
  });
}

function drawSteps(pen, colour, tab, x, from, now) {
  let nearest = null, distance = 12;
  for (const step of tab.steps) {
    const last = step.first ?? step.perceived;
    if (last < from) continue;
    const start = x(step.started), end = Math.max(start + 3, x(step.perceived));
    pen.fillStyle = colour('see');
    pen.beginPath();
    pen.roundRect(start, SEE.top, end - start, SEE.height, 2);
    pen.fill();
    pen.globalAlpha = now - last < 1 ? 1 : 0.55;
    pen.strokeStyle = pen.fillStyle = colour('path');
    pen.lineWidth = now - last < 1 ? 2 : 1.25;
    pen.beginPath();
    pen.moveTo(x(step.captured), CAPTURED);
    pen.lineTo(x(step.started), SEE.top);
    pen.lineTo(x(step.perceived), SEE.top + SEE.height);
    if (step.first !== null) pen.lineTo(x(step.first), SAY.top);
    pen.stroke();
    drawDot(pen, x(step.captured), CAPTURED);
    if (step.first !== null) drawDot(pen, x(step.first), SAY.top);
    pen.globalAlpha = 1;
    if (pointer !== null && Math.abs(start - pointer) < distance) {
      distance = Math.abs(start - pointer);
      nearest = step;
    }
  }
  const step = nearest ?? tab.steps[tab.steps.length - 1];
  put(byId('step'), step ? inWords(step) : '');
}

function drawDot(pen, x, y) {
  pen.beginPath();
  pen.arc(x, y, 3, 0, 7);
  pen.fill();
}

function inWords(step) {
  const seen = `step ${step.step}: captured, perceived ${lag(step.perceived - step.captured)} later`;
  const told = step.first === null ? '' : `, first word ${lag(step.first - step.perceived)} after`;
  const share = Math.round(100 * step.overlap);
  return seen + told + (share ? `; decoding ran for ${share} % of its perception` : '');
}

// What the user does.

for (const seconds of SPANS_S) {
  const button = make('button', '', `${seconds} s`);
  button.type = 'button';
  button.setAttribute('aria-pressed', seconds === span);
  button.onclick = () => {
    span = seconds;
    for (const other of byId('spans').children) {
      other.setAttribute('aria-pressed', other === button);
    }
  };
  byId('spans').append(button);
}
byId('lanes').onpointermove = (event) => { pointer = event.offsetX; };
byId('lanes').onpointerleave = () => { pointer = null; };
byId('ask').onsubmit = (event) => {
  event.preventDefault();
  const question = byId('question').value.trim();
  if (question) act('ask', question);
  byId('question').value = '';
};
byId('pause').onclick = () => act('pause', tabs[shown]?.paused ? 'off' : 'on');
byId('reset').onclick = () => act('reset');
byId('prompt').onclick = () => {
  byId('new-prompt').value = tabs[shown]?.health.engine?.values?.prompt ?? '';
  byId('prompting').showModal();
};
byId('prompting').onclose = () => {
  if (byId('prompting').returnValue === 'set') act('prompt', byId('new-prompt').value);
};
document.onvisibilitychange = watch;
connect();
requestAnimationFrame(drawLanes);
