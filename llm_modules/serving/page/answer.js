// One answer as it is written: its thought folded, its solution in view, and what it took.

import { answer } from "./client.js";
import { element } from "./elements.js";
import { following } from "./following.js";
import { laidOut } from "./markdown.js";
import { sections } from "./sections.js";

/** An empty answer of a model; `element` is shown, `text` was written so far, `note` says how it ended. */
export function newAnswer(model) {
  const summary = element("summary", {}, "Thought");
  const thought = element("div", { class: "prose" });
  const folded = element("details", { class: "thought", hidden: true }, summary, thought);
  const solution = element("div", { class: "prose" });
  const note = element("p", { class: "note" });
  // A screen reader waits until an answer is no longer busy, and then reads it once.
  const shown = element("article", { class: "answer", "aria-busy": "true" });
  shown.append(element("h3", { class: "who" }, model), folded, solution, note);
  let frame = 0;

  function draw(finished) {
    frame = 0;
    const parts = sections(made.text, { finished });
    folded.hidden = parts.thought === null;
    summary.textContent = parts.thinking ? "Thinking…" : `Thought, ${count(parts.thought ?? "", "word")}`;
    if (parts.thought !== null) thought.replaceChildren(laidOut(parts.thought));
    solution.replaceChildren(laidOut(parts.solution));
  }

  const made = {
    element: shown,
    text: "",
    note: "",
    add(piece) {
      made.text += piece;
      frame ||= requestAnimationFrame(() => following(() => draw(false)));
    },
    finish(words, { failed = false } = {}) {
      cancelAnimationFrame(frame);
      following(() => {
        draw(true);
        note.textContent = made.note = words;
      });
      if (failed) note.setAttribute("role", "alert");
      note.classList.toggle("failed", failed);
      shown.removeAttribute("aria-busy");
    },
  };
  return made;
}

/** Ask the server, and fill an answer until it ends, fails or is stopped. Never throws. */
export async function fill(made, request, { signal }) {
  const start = performance.now();
  let first = null;
  try {
    for await (const piece of answer(request, { signal })) {
      if (piece.text) {
        first ??= performance.now();
        made.add(piece.text);
      } else {
        made.finish(said(piece, request, { start, first, end: performance.now() }));
      }
    }
  } catch (error) {
    if (error.name === "AbortError") made.finish("Stopped.");
    else made.finish(error.message, { failed: true });
  }
}

function said({ reason, usage }, request, { start, first, end }) {
  const parts = [];
  const tokens = usage?.completion_tokens;
  if (tokens) parts.push(count(tokens, "token"), `${(tokens / ((end - start) / 1000)).toFixed(1)} per second`);
  if (first !== null) parts.push(`first after ${((first - start) / 1000).toFixed(2)} s`);
  if (reason === "length") parts.push(`cut at ${request.max_tokens} tokens: ask for more under Parameters`);
  if (first === null) parts.unshift("No text was written");
  return parts.join(" · ");
}

function count(what, noun) {
  const number = typeof what === "number" ? what : what.split(/\s+/).filter(Boolean).length;
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}
