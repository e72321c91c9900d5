// What stands under "Parameters", as fields of a request.

const NUMBERS = ["max_tokens", "temperature", "top_p", "top_k", "seed"];

/** The numbers that were given; what was left empty is the server's to choose. */
export function numbers(form) {
  const given = NUMBERS.filter((name) => form.elements[name].value.trim() !== "");
  return Object.fromEntries(given.map((name) => [name, form.elements[name].valueAsNumber]));
}

/** The system message as the first of the messages, if there is one. */
export function system(form) {
  const content = form.elements.system.value.trim();
  return content ? [{ role: "system", content }] : [];
}
