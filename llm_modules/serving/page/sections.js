// The sections of an answer: what was thought before, and the solution.

const TAGS = ["<|begin_of_thought|>", "<|end_of_thought|>", "<|begin_of_solution|>", "<|end_of_solution|>"];
const [BEGIN_THOUGHT, END_THOUGHT, BEGIN_SOLUTION, END_SOLUTION] = TAGS;

/**
 * Split an answer, finished or not, into `{ thought, solution, thinking }`.
 * Text outside of all sections belongs to the solution. `thought` is null where there is none.
 */
export function sections(text, { finished }) {
  const shown = withoutHalfATag(text, { least: finished ? 2 : 1 });
  const begin = shown.indexOf(BEGIN_THOUGHT);
  if (begin < 0) return { thought: null, solution: bare(shown), thinking: false };
  const before = shown.slice(0, begin);
  const rest = shown.slice(begin + BEGIN_THOUGHT.length);
  const ends = [END_THOUGHT, BEGIN_SOLUTION].map((tag) => rest.indexOf(tag)).filter((place) => place >= 0);
  const end = Math.min(rest.length, ...ends);
  const after = rest.slice(end);
  return { thought: bare(rest.slice(0, end)), solution: bare(before + after), thinking: !ends.length && !finished };
}

/** Leave out what may become a tag, or would have where an answer was cut: `least` characters of one or more. */
function withoutHalfATag(text, { least }) {
  for (let length = Math.min(text.length, BEGIN_SOLUTION.length); length >= least; length -= 1) {
    const tail = text.slice(-length);
    if (TAGS.some((tag) => tag !== tail && tag.startsWith(tail))) return text.slice(0, -length);
  }
  return text;
}

const bare = (text) => TAGS.reduce((left, tag) => left.replaceAll(tag, ""), text).trim();
