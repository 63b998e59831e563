'use strict';
const json = id => JSON.parse(document.getElementById(id).textContent);
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const page = json('page'), exposures = json('exposures');
const rows = $$('.row');
const list = $('#rows'), viewer = $('#viewer'), stage = $('#stage'), sheet = $('#sheet');

// ---- what the user does; survives a reload
const EMPTY = {edits: {}, flags: {}, notes: {}, accepted: {}, seen: {}, view: {sort: 'score', down: true, query: ''}};
let state = structuredClone(EMPTY);
function restore() {
  withStorage(() => {
    const saved = JSON.parse(localStorage.getItem(page.key) || '{}');
    for (const part in EMPTY) Object.assign(state[part], saved[part]);
  });
}
function keep() { withStorage(() => localStorage.setItem(page.key, JSON.stringify(state))); }
function withStorage(act) {
  try { act(); }
  catch (error) { forgetful = 'This browser keeps nothing: save before you leave'; say(forgetful); }
}
let forgetful = '';
function say(text) { $('#message').textContent = text; }

// ---- what was said of an exposure
const LIMITS = {scale: [0, 10], threshold: [0, 1]};
// the stamp of an exposure changes when it is redone: but for flags, what was said is of the image before
const has = (part, e) => Object.hasOwn(state[part], part === 'flags' ? e.dataset : e.stamp);
const edit = e => state.edits[e.stamp] || {};
const newMethod = e => (e.only_fit && edit(e).scale === 'fit') ? 'adaptive' : edit(e).method || e.method || 'dr05';
const locked = (e, field) => e.broken || (field === 'scale' ? e.redo_wisps : e.redo_striping);
const idle = (e, field) => field === 'threshold' && newMethod(e) === 'adaptive';
function valid(e, field, text) {
  if (field === 'scale' && (text === 'fit' || e.only_fit)) return text === 'fit';
  return /^(\d+\.?\d*|\.\d+)$/.test(text) && +text >= LIMITS[field][0] && +text <= LIMITS[field][1];
}
const invalid = e => Object.keys(LIMITS).filter(field => edit(e)[field] && !valid(e, field, edit(e)[field]));
function changes(e) {                                     // valid ones that differ from the present value
  const typed = edit(e), found = {};
  for (const field in LIMITS) {
    const text = typed[field];
    if (!text || locked(e, field) || idle(e, field) || !valid(e, field, text)) continue;
    if (text === 'fit' || e[field] === null || +text !== e[field]) found[field] = text;
  }
  const now = e.method || (typed.method ? '' : 'dr05');   // of an image with neither correction, any choice is one
  if (!locked(e, 'method') && newMethod(e) !== now) found.method = newMethod(e);
  return Object.keys(found).length ? found : null;
}
function type(i, field, text) {
  const e = exposures[i], typed = {...edit(e), [field]: text.trim().toLowerCase()};
  if (!typed[field]) delete typed[field];
  if (Object.keys(typed).length) state.edits[e.stamp] = typed; else delete state.edits[e.stamp];
  changed(i);
}
function otherMethod(i) {
  if (locked(exposures[i], 'method')) return;
  const other = newMethod(exposures[i]) === 'adaptive' ? 'dr05' : 'adaptive';
  type(i, 'method', other === (exposures[i].method || 'dr05') ? '' : other);
}
function revert(i) { delete state.edits[exposures[i].stamp]; changed(i); }
function flag(i, note) {
  const e = exposures[i];
  if (note === undefined && has('flags', e)) lower(e);
  else state.flags[e.dataset] = note ?? state.notes[e.dataset] ?? '';
  delete state.accepted[e.stamp];
  changed(i);
}
function lower(e) {                                       // the flag; its note comes again with the next one
  if (state.flags[e.dataset]) state.notes[e.dataset] = state.flags[e.dataset];
  delete state.flags[e.dataset];
}
function accept(i, yes = true) {
  const e = exposures[i];
  delete state.accepted[e.stamp];
  if (yes && !e.broken && !changes(e)) { state.accepted[e.stamp] = 1; lower(e); }
  changed(i);
}
function changed(i) { keep(); show(i); count(); }

// ---- the table that is saved
function plan(e) {                                        // what is to be made of an exposure; null: nothing
  const found = changes(e);
  if (!found) return null;
  const fitted = e.has_wisps && !e.redo_wisps && e.wisp_method !== 'fixed' && e.wisp_method !== found.method;
  const threshold = found.threshold || (e.threshold === null ? '' : String(e.threshold)), method = newMethod(e);
  const mixed = found.scale && !found.method && fitted && e.wisp_method && e.wisp_method !== method;
  return [found.scale || (found.method && fitted ? 'fit' : ''), method === 'adaptive' ? '' : threshold,
          mixed ? '' : method];                           // each correction as it was
}
function table() {
  const cell = text => /[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
  const lines = [['dataset', 'wisp_scale', 'mask_threshold', 'method', 'flag', 'accepted']];
  for (const e of exposures) {
    const todo = plan(e), mark = has('flags', e) ? state.flags[e.dataset] || '1' : '';
    if (todo || mark || FLAGS.accepted(e))
      lines.push([e.dataset, ...(todo || ['', '', '']), mark, FLAGS.accepted(e) ? '1' : '']);
  }
  return lines.map(cells => cells.map(cell).join(',') + '\n').join('');
}
function save() {
  const now = new Date().toISOString().slice(0, 19);       // in UTC, like HISTORY: 2026-01-02T03:04:05
  const name = `review_${now.replace('T', '_').replaceAll(':', '')}.csv`;
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([table()], {type: 'text/csv;charset=utf-8'}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  const bad = exposures.filter(e => invalid(e).length).map(e => e.dataset);
  $('#save-name').textContent = name;
  $('#save-count').textContent = `${number('changed')} to redo, ${number('flagged')} flagged, `
    + `${number('accepted')} accepted.`;
  $('#save-bad').textContent = bad.length ? 'Left out, because what was typed is not a number in its range: ' + bad.join(', ') : '';
  $('#save-what').textContent = number('changed') ? 'To redo what was changed; make this page again afterwards.'
    : 'Nothing is to be redone. To see what the accepted exposures do not need any more; --remove takes it away.';
  $('#save-commands').textContent = (number('changed') ? page.redo : page.finish)
    .replace('--table TABLE', '--table ~/Downloads/' + name);
  $('#save-csv').textContent = table();
  if (!$('#saved').open) $('#saved').showModal();
}

// ---- one row, and the viewer when it shows the same exposure
function fill(root, e) {
  const typed = edit(e), found = changes(e) || {};
  for (const input of $$('[data-field]', root)) {
    const field = input.dataset.field;
    const why = locked(e, field) || (idle(e, field) && 'the adaptive method has no threshold');
    if (document.activeElement !== input) input.value = typed[field] || '';
    input.disabled = Boolean(why);
    input.title = why || (field === 'scale' && e.only_fit && "'fit', which takes the adaptive method")
      || input.dataset.help;
    input.classList.toggle('new', field in found);
    input.setAttribute('aria-invalid', invalid(e).includes(field));
    if (field !== 'method') input.placeholder = e[field] === null ? '–' : +e[field].toPrecision(4);
    else {
      const [now, ...others] = input.options;
      now.textContent = !typed.method && found.method || e.method || '–';
      for (const option of others) option.hidden = option.value === e.method;
    }
  }
  const note = $('.note', root);
  note.hidden = !has('flags', e);
  if (document.activeElement !== note) note.value = state.flags[e.dataset] || '';
  $('.flag', root).setAttribute('aria-pressed', has('flags', e));
  $('.accept', root).setAttribute('aria-pressed', FLAGS.accepted(e));
  $('.accept', root).disabled = Boolean(e.broken || changes(e));
  $('.revert', root).hidden = !has('edits', e);
}
function show(i) {
  const e = exposures[i];
  fill(rows[i], e);
  for (const name of ['changed', 'flagged', 'accepted', 'seen']) rows[i].classList.toggle(name, FLAGS[name](e));
  if (viewer.open && current === i) fill($('#viewer-side'), e);
}
const number = mark => exposures.filter(FLAGS[mark]).length;
function count() {
  const redo = number('changed');
  $('#counts').textContent = `${order.length} of ${exposures.length} · ${number('seen')} seen · `
    + `${number('accepted')} accepted · ${number('flagged')} flagged · ${redo} to redo`;
  $('#save').textContent = redo ? `Save (${redo})` : 'Save';
}

// ---- sort and filter
const problem = e => Boolean(e.broken || e.warnings.length || e.notes.length);
const FLAGS = {
  warn: problem, flagged: e => has('flags', e), accepted: e => has('accepted', e) && !changes(e),
  changed: e => Boolean(changes(e)),
  broken: e => Boolean(e.broken), seen: e => has('seen', e), wisps: e => e.has_wisps,
};
function keyOf(e, key) {                                  // undefined: there is no such name
  if (key === 'name') return e.dataset;
  if (key === 'warnings') return (e.broken ? 1000 : 0) + e.warnings.length * 10 + e.notes.length;
  if (Object.hasOwn(FLAGS, key)) return +FLAGS[key](e);
  const value = Object.hasOwn(e, key) ? e[key] : undefined;
  return typeof value === 'object' && value !== null ? undefined : value;
}
let order = exposures.map((_, i) => i), current = 0;
function compare(a, b) {
  const {sort, down} = state.view, sign = down ? -1 : 1;
  if (sort === 'score') {                                 // unreadable first, then warnings, then the number
    const rank = e => 2 * Boolean(e.broken) + (!e.broken && problem(e));
    const by = rank(exposures[a]) - rank(exposures[b]);
    if (by) return sign * by;
  }
  const x = keyOf(exposures[a], sort) ?? '', y = keyOf(exposures[b], sort) ?? '';
  if (x === '' || y === '') return (x === '') - (y === '') || a - b;      // always last
  const by = typeof x === 'string' ? x.localeCompare(y, 'en', {numeric: true}) : x - y;
  return sign * by || a - b;
}
function tests(query) {                                   // list of e -> bool, one per word, and what is wrong
  const wrong = [], found = [];
  for (const word of query.toLowerCase().split(/\s+/).filter(word => word && word !== '-')) {
    const no = word.startsWith('-'), bare = word.slice(no);
    const [, key, sign, value] = /^(\w+)(<=|>=|<|>|=)(.*)$/.exec(bare) || [];
    if (Object.hasOwn(FLAGS, bare)) found.push(e => FLAGS[bare](e) !== no);
    else if (!key) found.push(e => words(e).includes(bare) !== no);
    else if (exposures.every(e => keyOf(e, key) === undefined))
      wrong.push(`nothing is called "${key}" (? lists names)`);
    else if (isNaN(value) && exposures.some(e => typeof keyOf(e, key) === 'number'))
      wrong.push(`"${value}" is not a number`);
    else if (value) found.push(e => (keyOf(e, key) ?? '') !== '' && holds(keyOf(e, key), sign, value) !== no);
  }
  return [found, wrong.join('; ')];
}
function holds(has, sign, value) {
  const by = typeof has === 'number' ? has - value : has.toLowerCase().localeCompare(value, 'en', {numeric: true});
  return {'<': by < 0, '>': by > 0, '<=': by <= 0, '>=': by >= 0}[sign] ?? Math.abs(by) < 1e-9;
}
const words = e => [e.dataset, e.detector, e.filter, e.template, e.method, e.date, e.broken,
                    state.flags[e.dataset] || '', ...e.warnings, ...e.notes].join(' ').toLowerCase();
function arrange() {
  const {sort, down, query} = state.view, [wanted, wrong] = tests([query, ...facets.map(f => f.value)].join(' '));
  order = exposures.map((_, i) => i).filter(i => wanted.every(test => test(exposures[i]))).sort(compare);
  const shown = new Set(order);
  rows.forEach((row, i) => { row.hidden = !shown.has(i); });
  list.append(...order.map(i => rows[i]));
  const arrow = down ? '▼' : '▲';
  for (const cell of $$('[role=columnheader]')) cell.removeAttribute('aria-sort');
  for (const button of $$('[data-sort]')) {
    button.dataset.arrow = button.dataset.sort === sort ? arrow : '';
    if (button.dataset.arrow)
      button.closest('[role=columnheader]').setAttribute('aria-sort', down ? 'descending' : 'ascending');
  }
  $('#direction').textContent = arrow;
  say(wrong ? 'Filter: ' + wrong : forgetful);
  $('#filter').setAttribute('aria-invalid', Boolean(wrong));
  $('#nothing').hidden = order.length > 0;
  if (!shown.has(current) && order.length) mark(order[0]);
  count();
}
function sortBy(key) {
  const text = exposures.some(e => typeof keyOf(e, key) === 'string');
  state.view = {...state.view, down: state.view.sort === key ? !state.view.down : !text, sort: key};
  $('#sort').value = key;
  keep(); arrange(); scrollTo(0, 0);
}

// ---- moving about
function mark(i, scroll = false) {
  rows[current].removeAttribute('aria-current');
  current = i;
  rows[i].setAttribute('aria-current', 'true');
  if (scroll) rows[i].scrollIntoView({block: 'nearest'});
}
function step(by) {
  const at = order.indexOf(current), next = order[Math.min(Math.max(at + by, 0), order.length - 1)];
  if (next === undefined) return;
  mark(next, true);
  if (viewer.open) view(next, panel);
}

// ---- the larger view; its pictures are text until they are needed
const data = (kind, text) => `data:image/${kind};base64,${text}`;
const AFTER = 2, images = $$('#sheet .panel');
let panel = AFTER, before = 0, blinking = 0, pictures = [], contrast = 0, full = false, spot = [0.5, 0.5];
function view(i, which = AFTER) {
  const e = exposures[i];
  mark(i, true);
  state.seen[e.stamp] = 1;
  if (!viewer.open) { viewer.showModal(); viewer.focus(); }      // not on the first button: keys are for the view
  pictures = json('views-' + i);
  images.forEach(img => img.removeAttribute('src'));
  $('#viewer-name').textContent = e.dataset;
  $('#viewer-what').textContent = [e.detector, e.filter, e.date].filter(Boolean).join(' · ');
  $('#viewer-place').textContent = `${order.indexOf(i) + 1} / ${order.length}`;
  $('#viewer-stretch').textContent = e.limits ? 'Black ' + e.limits.map(v => (1000 * v).toFixed(1)).join(', white ')
    + ' from the sky (removed: from 0), asinh, the same in all four.' : '';
  $('#viewer-pdf').hidden = !e.pdf;
  $('#viewer-pdf').href = e.pdf;
  $('#viewer-warnings').replaceChildren(...$('.said', rows[i]).cloneNode(true).children);
  const item = (name, text) => Object.assign(document.createElement(name), {textContent: text});
  $('#viewer-numbers').replaceChildren(...e.facts.flatMap(([name, value]) => [item('dt', name), item('dd', value)]));
  $('#full').disabled = !e.full.some(Boolean);
  $('#full').title = e.full.some(Boolean) ? 'every pixel; drag to move' : 'made without: review.py --small';
  drawOverlays(e);
  if (full) zoom(true);                                  // of another size, or without files
  turn([which, AFTER, 1, 0].find(k => pictures[k]) ?? 0, true);
  changed(i);
}
function turn(which, anew = false) {
  if (!pictures[which] && !anew) return;
  if (which !== panel) [before, panel] = [panel, which];
  const e = exposures[current], file = full && e.full[which];
  if (pictures[which]) images[which].src = file ? `${page.files}/${file}` : data('webp', pictures[which]);
  images.forEach((img, k) => { img.hidden = k !== which || !pictures[k]; });
  $$('.tab').forEach((tab, k) => { tab.setAttribute('aria-pressed', k === which); tab.disabled = !pictures[k]; });
  $('#viewer-none').hidden = pictures.slice(0, 4).some(Boolean);
}
function blink() {                                        // between the picture shown and the one shown before
  const other = pictures[before] && before !== panel ? before : [0, 1, 2].find(k => pictures[k] && k !== panel);
  if (other !== undefined) turn(other);
}
function autoBlink(on) {
  clearInterval(blinking);
  blinking = on ? setInterval(blink, 600) : 0;
  press('#blink', blinking);
}
const press = (selector, on) => $(selector).setAttribute('aria-pressed', Boolean(on));
function zoom(on) {                                       // every pixel, around where the pointer was
  const {full: files, shape} = exposures[current];
  full = on && files.some(Boolean);
  press('#full', full);
  stage.classList.toggle('full', full);
  sheet.style.width = full ? shape[1] + 'px' : '';
  if (full) stage.scrollTo(spot[0] * shape[1] - stage.clientWidth / 2, spot[1] * shape[0] - stage.clientHeight / 2);
  turn(panel, true);
}
function noFile(event) {                                  // the page was moved without its files
  if (!full || event.target.src.startsWith('data:')) return;
  zoom(false);
  $('#full').title = `not found: ${page.files}`;
  $('#full').disabled = true;
}
function setContrast(steps) {                             // a line through the grey of the sky, 0.3
  contrast = steps && Math.min(Math.max(contrast + steps, -2), 8);
  const slope = 2 ** (contrast / 2), by = 1 + 0.6 * (slope - 1);
  for (const img of images) img.style.filter = contrast ? `brightness(${slope / by}) contrast(${by})` : '';
  $('#usual').textContent = '× ' + +slope.toPrecision(2);
}
function drawOverlays(e) {
  const svg = $('#circle-image'), [ny, nx] = e.shape;
  $('#mask').disabled = $('#mask-image').hidden = !pictures[4];
  $('#mask-image').src = pictures[4] ? data('png', pictures[4]) : '';
  $('#circles').disabled = !e.circles.length;
  svg.setAttribute('viewBox', `0 0 ${nx} ${ny}`);
  svg.innerHTML = e.circles.map(([x, y, r]) => `<circle cx="${x + 0.5}" cy="${ny - y - 0.5}" r="${r}"/>`).join('');
}
function lay(name) { press('#' + name, sheet.classList.toggle(name)); }        // which is shown: review.css

// ---- what is clicked, typed and pressed
const indexOf = element => element.closest('.row') ? +element.closest('.row').dataset.index : current;
document.addEventListener('click', event => {
  const on = selector => event.target.closest(selector), i = indexOf(event.target);
  if (on('[data-key]')) return act(on('[data-key]').dataset.key);
  if (on('[data-sort]')) return sortBy(on('[data-sort]').dataset.sort);
  if (on('.close')) return on('dialog').close();
  if (!on('.row, #viewer-side')) return;
  mark(i);
  if (on('.thumb')) view(i, +on('.thumb').dataset.panel);
  else if (on('.flag')) flag(i);
  else if (on('.accept')) accept(i, !FLAGS.accepted(exposures[i]));
  else if (on('.revert')) revert(i);
});
document.addEventListener('input', event => {
  const {field} = event.target.dataset;
  if (field) type(indexOf(event.target), field, event.target.value);
  else if (event.target.matches('.note')) flag(indexOf(event.target), event.target.value);
});
list.addEventListener('focusin', event => mark(indexOf(event.target)));
// a choice made, keys are for the page again; arrow keys, which choose on their way, wait for Enter
let arrows = false;
document.addEventListener('change', event => { if (event.target.matches('select') && !arrows) event.target.blur(); });
document.addEventListener('pointerdown', () => { arrows = false; });

let dragged = false;
function point(event) {
  const box = sheet.getBoundingClientRect();
  spot = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}
stage.addEventListener('pointerdown', event => { dragged = false; point(event); });
stage.addEventListener('pointermove', event => {
  point(event);
  if (!full || event.pointerType !== 'mouse' || !(event.buttons & 1)) return;
  stage.scrollBy(-event.movementX, -event.movementY);
  dragged = true;
});
stage.addEventListener('click', () => { if (!dragged) blink(); });
stage.addEventListener('dblclick', () => zoom(!full));
images.forEach(img => img.addEventListener('error', noFile));
// the space bar is to blink, not to press the button used last
$('#viewer-main').addEventListener('click', () => viewer.focus());
viewer.addEventListener('close', () => { autoBlink(false); rows[current].scrollIntoView({block: 'nearest'}); });
$('#direction').addEventListener('click', () => sortBy(state.view.sort));
$('#sort').addEventListener('change', event => sortBy(event.target.value));
$('#filter').addEventListener('input', event => { state.view.query = event.target.value; keep(); arrange(); });
$('#save').addEventListener('click', save);
$('#copy').addEventListener('click', () => {
  if (navigator.clipboard) navigator.clipboard.writeText($('#save-commands').textContent);
  else getSelection().selectAllChildren($('#save-commands'));           // a page served without https
});
$('#forget').addEventListener('click', () => {
  if (!confirm('Forget all that was accepted, flagged and typed on this page?')) return;
  state = structuredClone(EMPTY);
  for (const select of facets) select.value = '';
  start(); $('#help').close();
});

function help() { $('#help').showModal(); $('#help').focus(); }      // at its top, not at a button
function go(selector, where = viewer.open ? $('#viewer-side') : rows[current]) {
  const input = $(selector, where);
  if (!input.disabled) { input.focus(); input.select(); }
}
const picture = k => { autoBlink(false); if (viewer.open) turn(k); else view(current, k); };
const SAME = {ArrowDown: 'n', ArrowRight: 'n', j: 'n', ArrowUp: 'p', ArrowLeft: 'p', k: 'p', '=': '+'};
const ACTIONS = {                                         // of keys, and of buttons that say which key they stand for
  n: () => step(1), p: () => step(-1), Home: () => step(-Infinity), End: () => step(Infinity),
  a: () => { accept(current); step(1); }, f: () => flag(current), m: () => otherMethod(current),
  c: () => { if (!has('flags', exposures[current])) flag(current); go('.note'); },
  s: () => go('[data-field=scale]'), t: () => go('[data-field=threshold]'), '?': help,
  '/': () => { if (viewer.open) viewer.close(); go('#filter', document); },
  1: () => picture(0), 2: () => picture(1), 3: () => picture(2), 4: () => picture(3),
};
const IN_LIST = {Enter: () => view(current)};
const IN_VIEW = {
  b: () => autoBlink(!blinking), ' ': () => { autoBlink(false); blink(); }, z: () => zoom(!full), x: () => lay('mask'),
  o: () => lay('circles'), '+': () => setContrast(1), '-': () => setContrast(-1), 0: () => setContrast(0),
};
function act(key) {                                       // true: there is something to do
  const name = SAME[key] || key, action = ACTIONS[name] || (viewer.open ? IN_VIEW : IN_LIST)[name];
  if (!order.length && !['?', '/'].includes(name)) return false;          // no exposure is shown that a key could mean
  if (action) action();
  return Boolean(action);
}
document.addEventListener('keydown', event => {
  if ((event.ctrlKey || event.metaKey) && event.key === 's') { event.preventDefault(); return save(); }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const target = event.target;
  if (target.matches('input, select, textarea')) {
    arrows = event.key.startsWith('Arrow');
    if (event.key !== 'Escape' && event.key !== 'Enter') return;
    if (event.key === 'Escape' || target.matches('select')) event.preventDefault();
    target.blur();
    if (target === $('#filter') && event.key === 'Enter' && order.length) mark(order[0], true);
    return;
  }
  if ($('#help').open || $('#saved').open) return;        // Escape closes them
  if (target.closest('button, a') && [' ', 'Enter'].includes(event.key)) return;         // presses that
  if (act(event.key)) event.preventDefault();
});

// ---- start
const facets = $$('.only');
facets.forEach(select => select.addEventListener('change', arrange));
function start() {
  $('#filter').value = state.view.query;
  $('#sort').value = state.view.sort;
  keep(); redraw();
}
function redraw() { arrange(); rows.forEach((_, i) => show(i)); }
window.addEventListener('storage', event => {            // another page of this directory
  if (event.key !== page.key || !event.newValue) return;
  state = {...JSON.parse(event.newValue), view: state.view};
  redraw();
});
restore();
start();
setContrast(0);
if (order.length) mark(order[0]);
