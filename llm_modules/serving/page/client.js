// The server's API: the models there are, answers as they are written, and what they were written from.

const KEY = "llm-modules-key";
const CUT = "The connection ended before the answer did.";

/** What the server refused, in its own words. */
export class Refusal extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Remember the server's key for as long as this tab lives. */
export const rememberKey = (key) => sessionStorage.setItem(KEY, key);

/** The models that can be asked, as the server lists them. */
export async function models() {
  return (await (await call("v1/models")).json()).data;
}

/** Tokens read and written by a module, its gates and its attention. */
export async function inspect(request, { signal }) {
  return (await call("v1/inspect", { signal, body: request })).json();
}

/**
 * Yield `{ text }` for each piece of an answer, then `{ reason, usage }` as the server says how it ended.
 * Leaving the loop, or the signal, ends the answer on the server too.
 */
export async function* answer(request, { signal }) {
  const body = { ...request, stream: true, stream_options: { include_usage: true } };
  const response = await call("v1/chat/completions", { signal, body });
  const end = { reason: null, usage: null };
  for await (const data of events(response.body)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refusal(chunk.error.message, response.status);
    const [choice] = chunk.choices ?? [];
    if (choice?.delta?.content) yield { text: choice.delta.content };
    end.reason = choice?.finish_reason ?? end.reason;
    end.usage = chunk.usage ?? end.usage;
  }
  yield end;
}

/** The data of server-sent events, one string an event. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new Refusal(CUT, 0);
      const blocks = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const lines = block.split("\n").filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } catch (error) {
    throw error instanceof TypeError ? new Refusal(CUT, 0) : error; // what a broken connection throws
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function call(path, { signal, body } = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = {
    ...(body && { "Content-Type": "application/json" }),
    ...(key && { Authorization: `Bearer ${key}` }),
  };
  let response;
  try {
    const method = body ? "POST" : "GET";
    response = await fetch(path, { method, signal, headers, body: body && JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server does not answer. Is it still running?", 0);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const said = await response.json().catch(() => null);
  return new Refusal(said?.error?.message ?? `The server answered with status ${response.status}.`, response.status);
}
