// What each token of an answer was written from: how far gates opened, and which tokens were read.

import { inspect } from "./client.js";
import { byId, element, replaceOptions } from "./elements.js";
import { toEnd } from "./following.js";
import { heatChoice, heatText, shade } from "./heat.js";
import { numbers, system } from "./parameters.js";

const MOST = 5; // tokens read that are listed with their figures
const SEEN = 0.0005; // smaller shares would be listed as nothing

let pictures = 0;

const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.0995 ? 1 : 0)} %`;

/** The view: what it asks goes through `run`, which hands it a signal to stop. */
export function insideView({ form, run }) {
  const shown = byId("inspections");
  const chosen = byId("inside-model");

  async function look(question, signal) {
    const model = chosen.value;
    const request = {
      model,
      messages: [...system(form), { role: "user", content: question }],
      max_tokens: numbers(form).max_tokens,
    };
    const waiting = element(
      "p",
      { class: "note", role: "status" },
      `${model} writes, and is watched… `,
      element("progress"),
    );
    const round = element("section", { class: "round" }, element("h2", { class: "question" }, question), waiting);
    shown.append(round);
    toEnd();
    try {
      waiting.replaceWith(inspection(await inspect(request, { signal })));
      round.scrollIntoView({ block: "start" });
    } catch (error) {
      const stopped = error.name === "AbortError";
      waiting.setAttribute("role", stopped ? "status" : "alert");
      waiting.classList.toggle("failed", !stopped);
      waiting.textContent = stopped ? "Stopped." : error.message;
    }
  }

  return {
    ask: (question) => run((signal) => look(question, signal)),
    busy: () => {},
    offer: (models) =>
      replaceOptions(
        chosen,
        models.filter((model) => model.parent),
      ),
  };
}

/** The picture of `{ model, read, written, gates [layers][written], attention [layers][written][read] }`. */
export function inspection({ model, read, written, gates, attention }) {
  if (!written.length)
    return element("p", { class: "note" }, `${model} wrote nothing, so there is nothing to look at.`);
  const source = heatText(read);
  const figures = element("div", { class: "figures", role: "status" });
  const [widest, largest] = [element("span"), element("span")]; // what the darkest shades stand for
  let layer = 0;
  let place = 0;
  const output = heatChoice(written, { label: "Tokens written", chosen: (now) => choose(now) });

  function choose(now) {
    place = now;
    const weights = attention[layer][place];
    const top = Math.max(...weights);
    shade(source.tokens, weights, top);
    source.tokens.forEach((token, index) => (token.title = percent(weights[index])));
    largest.textContent = percent(top);
    const token = element("code", {}, written[place]);
    const gate = element("strong", {}, percent(gates[layer][place]));
    const most = readMost(read, weights);
    const sentence = [
      ` token ${place + 1} of ${written.length}: gate `,
      gate,
      " open. It read ",
      most.length ? "most:" : "nothing.",
    ];
    figures.replaceChildren(element("p", {}, token, ...sentence), element("ol", {}, ...most));
  }

  function turn(to) {
    layer = to;
    const top = Math.max(...gates[layer]);
    shade(output.tokens, gates[layer], top);
    widest.textContent = percent(top);
    output.tokens.forEach((token, index) =>
      token.setAttribute(
        "aria-label",
        `${token.textContent.trim() || "blank"}, gate ${percent(gates[layer][index])} open`,
      ),
    );
    choose(place);
  }

  const name = `layer-${(pictures += 1)}`;
  const layers = gates.map((_, index) => {
    const radio = element("input", { type: "radio", name, checked: index === 0 });
    radio.addEventListener("change", () => turn(index));
    return element("label", {}, radio, element("span", {}, `${index + 1}`));
  });
  turn(0);
  return element(
    "article",
    { class: "inspection" },
    element("p", { class: "who" }, model),
    element(
      "fieldset",
      { class: "layers", hidden: layers.length < 2, "aria-label": "Layer" },
      element("p", {}, "Layer"),
      ...layers,
    ),
    element(
      "section",
      { "aria-label": "Written" },
      element("h3", {}, "Written"),
      element(
        "p",
        { class: "hint" },
        "How far the gate was open: ",
        ramp(widest),
        " Choose a token by a click or the arrow keys.",
      ),
      output.element,
    ),
    element(
      "section",
      { "aria-label": "Read" },
      element("h3", {}, "Read for it"),
      element("p", { class: "hint" }, "Share of the attention: ", ramp(largest)),
      source.element,
      figures,
    ),
  );
}

/** The tokens that were read most, an item each, with figure and bar. */
function readMost(read, weights) {
  const pairs = weights.map((weight, index) => ({ weight, token: read[index] })).filter(({ weight }) => weight >= SEEN);
  const most = pairs.sort((a, b) => b.weight - a.weight).slice(0, MOST);
  return most.map(({ weight, token }) => {
    const bar = element("span", { class: "bar" });
    bar.style.setProperty("--share", weight);
    return element("li", {}, element("code", {}, token), " ", element("span", {}, percent(weight)), bar);
  });
}

/** What the shades mean, from the lightest to the darkest. */
const ramp = (top) => element("span", { class: "ramp" }, element("span", {}, percent(0)), top);
