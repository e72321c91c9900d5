// One question, a column for each model, all written at once.

import { fill, newAnswer } from "./answer.js";
import { byId, element } from "./elements.js";
import { toEnd } from "./following.js";
import { numbers, system } from "./parameters.js";

/** Chosen at first: the source, a model that stands alone, and as many modules as make three. */
function atFirst(models) {
  const [source, alone] = models.filter((model) => !model.parent);
  return [source, alone, ...models.filter((model) => model.parent)].filter(Boolean).slice(0, 3);
}

/** The view: what it asks goes through `run`, which hands it a signal to stop. */
export function compareView({ form, run, tell }) {
  const shown = byId("comparisons");
  const choices = byId("compared");
  const boxes = () => [...choices.querySelectorAll("input")];

  async function answers(question, models, signal) {
    const messages = [...system(form), { role: "user", content: question }];
    const columns = models.map((model) => ({ model, made: newAnswer(model) }));
    const round = element("section", { class: "round" }, element("h2", { class: "question" }, question));
    round.append(element("div", { class: "columns" }, ...columns.map(({ made }) => made.element)));
    shown.append(round);
    toEnd();
    const parameters = numbers(form);
    await Promise.all(columns.map(({ model, made }) => fill(made, { model, messages, ...parameters }, { signal })));
  }

  return {
    ask(question) {
      const models = boxes()
        .filter((box) => box.checked)
        .map((box) => box.value);
      if (!models.length) return tell("Choose at least one model to compare.");
      return run((signal) => answers(question, models, signal));
    },
    busy: (is) => (choices.disabled = is),
    offer(found) {
      // What modules are held against comes first.
      const models = found.toSorted((a, b) => Boolean(a.parent) - Boolean(b.parent));
      const before = new Map(boxes().map((box) => [box.value, box.checked]));
      const first = before.size ? [] : atFirst(models);
      const box = (model) => {
        const checked = before.get(model.id) ?? first.includes(model);
        return element("label", {}, element("input", { type: "checkbox", value: model.id, checked }), " ", model.id);
      };
      boxes().forEach((old) => old.parentElement.remove());
      choices.append(...models.map(box));
    },
  };
}
