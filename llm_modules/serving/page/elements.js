// Build elements from text that is never markup.

/**
 * An element with attributes and children; strings become text.
 * An attribute that is `true` is set empty, one that is `false` or missing is left out.
 */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** The element of this page with an id. */
export const byId = (id) => document.getElementById(id);

/** Offer models in a select; what was chosen stays if it is still there, else a module is chosen before the source. */
export function replaceOptions(select, models) {
  const before = select.value;
  select.replaceChildren(...models.map(({ id }) => element("option", { value: id }, id)));
  const chosen = models.find(({ id }) => id === before) ?? models.find(({ parent }) => parent) ?? models[0];
  if (chosen) select.value = chosen.id;
}
