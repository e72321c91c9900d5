// The page: which view is shown, the question below it, and one thing running at a time.

import { chatView } from "./chat.js";
import { models, rememberKey } from "./client.js";
import { compareView } from "./compare.js";
import { byId } from "./elements.js";
import { insideView } from "./inside.js";

const form = byId("composer");
const { question, ask, stop } = form.elements;
let running = null;
let turns = 0;

const views = {
  chat: chatView({ form, run }),
  compare: compareView({ form, run, tell }),
  inside: insideView({ form, run }),
};
const current = () => (location.hash.slice(1) in views ? location.hash.slice(1) : "chat");

/** Run one thing; the button, or the key Escape, stops it. */
async function run(task) {
  if (running) return;
  running = new AbortController();
  busy(true);
  try {
    await task(running.signal);
  } finally {
    running = null;
    busy(false);
  }
}

function busy(is) {
  const focused = [ask, stop].includes(document.activeElement);
  ask.hidden = is;
  stop.hidden = !is;
  if (focused) question.focus();
  for (const view of Object.values(views)) view.busy(is);
}

/** As tall as what stands in it, where the browser's style sheets cannot say so (Firefox, Safari). */
function growWithItsText(field) {
  const fit = () => {
    field.style.height = "auto";
    field.style.height = `${field.scrollHeight + field.offsetHeight - field.clientHeight}px`;
  };
  field.addEventListener("input", fit);
  form.addEventListener("submit", () => setTimeout(fit)); // after the view has taken the text
}

/** Say what hinders everything; an empty text takes it back. */
function tell(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

function show() {
  for (const name of Object.keys(views)) byId(name).hidden = name !== current();
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${current()}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${byId(`${current()}-title`).textContent} · LLM Modules`;
}

/** Ask the server what there is; modules come and go while it runs. What was asked last counts, not what answers last. */
async function offer() {
  const turn = ++turns;
  try {
    const found = await models();
    if (turn !== turns) return;
    for (const view of Object.values(views)) view.offer(found);
    byId("access").hidden = true;
    tell("");
  } catch (error) {
    if (turn !== turns) return;
    byId("access").hidden = error.status !== 401;
    tell(error.message);
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = question.value.trim();
  if (text && !running) views[current()].ask(text);
});
// A field that is folded away cannot say what is wrong with it.
form.addEventListener("invalid", (event) => event.target.closest("details")?.setAttribute("open", ""), true);
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
if (!CSS.supports("field-sizing", "content")) growWithItsText(question);
stop.addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
byId("access").addEventListener("submit", (event) => {
  event.preventDefault();
  rememberKey(byId("key").value);
  offer();
});
addEventListener("hashchange", () => {
  show();
  offer();
});

show();
offer();
