// A conversation with one model; it lives as long as its tab.

import { fill, newAnswer } from "./answer.js";
import { byId, element, replaceOptions } from "./elements.js";
import { following, toEnd } from "./following.js";
import { numbers, system } from "./parameters.js";

const KEPT = "llm-modules-turns";

/** The view: what it asks goes through `run`, which hands it a signal to stop. */
export function chatView({ form, run }) {
  const shown = byId("turns");
  const chosen = byId("chat-model");
  const forget = byId("forget");
  const retry = element("button", { type: "button", class: "retry" }, "Retry");
  let turns = [];

  /** A turn that is shown: its question, and below it the answer or the room for one. */
  function show(question) {
    const round = element("section", { class: "round" }, element("h2", { class: "question" }, question));
    shown.append(round);
    forget.hidden = false;
    return round;
  }

  async function reply(round, question, signal) {
    retry.remove();
    const before = turns.flatMap((turn) => [
      { role: "user", content: turn.question },
      { role: "assistant", content: turn.text },
    ]);
    const messages = [...system(form), ...before, { role: "user", content: question }];
    const model = chosen.value;
    const made = newAnswer(model);
    round.append(made.element);
    toEnd();
    await fill(made, { model, messages, ...numbers(form) }, { signal });
    if (made.text) turns.push({ question, model, text: made.text, note: made.note }); // nothing written is no turn
    keep();
    offerRetry(round, question, made);
  }

  function offerRetry(round, question, made) {
    retry.onclick = () =>
      run(async (signal) => {
        if (made.text) turns.pop();
        made.element.replaceWith(earlier(made.element));
        await reply(round, question, signal);
      });
    following(() => round.append(retry));
  }

  const keep = () => sessionStorage.setItem(KEPT, JSON.stringify(turns));

  function restore() {
    turns = JSON.parse(sessionStorage.getItem(KEPT) ?? "[]");
    for (const [index, turn] of turns.entries()) {
      const round = show(turn.question);
      const made = newAnswer(turn.model);
      made.add(turn.text);
      made.finish(turn.note);
      round.append(made.element);
      if (index === turns.length - 1) offerRetry(round, turn.question, made);
    }
  }

  forget.onclick = () => {
    turns = [];
    keep();
    shown.replaceChildren();
    forget.hidden = true;
    form.elements.question.focus();
  };
  restore();

  return {
    ask: (question) => {
      form.elements.question.value = "";
      return run((signal) => reply(show(question), question, signal));
    },
    busy: (is) => (forget.disabled = is),
    offer: (models) => replaceOptions(chosen, models),
  };
}

/** An answer that another one took the place of. */
const earlier = (answer) =>
  element("details", { class: "earlier" }, element("summary", {}, "Earlier answer"), answer.cloneNode(true));
