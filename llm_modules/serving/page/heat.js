// Text with a shade behind each token.

import { element } from "./elements.js";

/** A token as it stands in a text: blanks are blanks, and a line break keeps its sign. */
function spelled(token, name, attributes) {
  const text = token.replaceAll("␣", " ").replaceAll("↵", "↵\n");
  return element(name, { class: "token", ...attributes }, text);
}

/** Shade tokens by values from 0 to `top`. */
export function shade(tokens, values, top) {
  tokens.forEach((token, index) => token.style.setProperty("--shade", top > 0 ? values[index] / top : 0));
}

/** Text to read: `{ element, tokens }`. */
export function heatText(texts) {
  const tokens = texts.map((text) => spelled(text, "span"));
  return { element: element("p", { class: "tokens" }, ...tokens), tokens };
}

/**
 * Text of which one token is chosen, by pointer or by keyboard: one stop for Tab, arrows within.
 * The first is chosen; `chosen` is called with the place of each later one.
 */
export function heatChoice(texts, { label, chosen }) {
  const tokens = texts.map((text) =>
    spelled(text, "span", { role: "option", tabindex: "-1", "aria-selected": "false" }),
  );
  const list = element("div", { class: "tokens", role: "listbox", "aria-label": label }, ...tokens);
  let current = 0;
  mark(0);

  function mark(place) {
    for (const [token, is] of [
      [tokens[current], false],
      [tokens[place], true],
    ]) {
      token.setAttribute("aria-selected", is);
      token.tabIndex = is ? 0 : -1;
    }
    current = place;
  }

  function choose(place) {
    mark(place);
    tokens[place].focus();
    chosen(place);
  }

  /** The token above or below: on the nearest line that way, the nearest one. */
  function across(way) {
    const from = tokens[current];
    const beyond = tokens.filter((token) => (token.offsetTop - from.offsetTop) * way > from.offsetHeight / 2);
    const line = beyond.at(way > 0 ? 0 : -1)?.offsetTop;
    const distance = (token) => Math.abs(token.offsetLeft - from.offsetLeft);
    const there = beyond.filter((token) => token.offsetTop === line).sort((a, b) => distance(a) - distance(b));
    return there.length ? tokens.indexOf(there[0]) : current;
  }

  const moves = {
    ArrowRight: () => Math.min(current + 1, tokens.length - 1),
    ArrowLeft: () => Math.max(current - 1, 0),
    ArrowDown: () => across(1),
    ArrowUp: () => across(-1),
    Home: () => 0,
    End: () => tokens.length - 1,
  };
  list.addEventListener("keydown", (event) => {
    if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    choose(moves[event.key]());
  });
  list.addEventListener("click", (event) => {
    const place = tokens.indexOf(event.target.closest(".token"));
    if (place >= 0) choose(place);
  });
  return { element: list, tokens };
}
