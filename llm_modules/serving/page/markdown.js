// Markdown and formulas of a model, as a fragment in which nothing can run and nothing is loaded.

import DOMPurify from "./vendor/dompurify.js";
import { tex } from "./vendor/markdown-it-tex.js";
import MarkdownIt from "./vendor/markdown-it.js";

const TEXT = "p br hr h1 h2 h3 h4 h5 h6 strong em s code pre blockquote ul ol li table thead tbody tr th td a span";
const MATHS =
  "math semantics mrow mi mn mo ms mtext mspace mfrac msqrt mroot msub msup msubsup munder mover munderover " +
  "mmultiscripts mprescripts mtable mtr mtd mstyle mpadded mphantom menclose";
const ATTRIBUTES =
  "href start class display mathvariant stretchy fence separator form accent accentunder lspace rspace minsize " +
  "maxsize symmetric largeop movablelimits linethickness width height depth voffset columnalign columnspan rowspan " +
  "scriptlevel displaystyle notation";

// Listed rather than forbidden: no picture, no form, no id and no style can come from a text.
const ALLOWED = {
  ALLOWED_TAGS: `${TEXT} ${MATHS}`.split(" "),
  ALLOWED_ATTR: ATTRIBUTES.split(" "),
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  RETURN_DOM_FRAGMENT: true,
};

/** A formula as MathML; what is none stays as it was written. */
function formula(source, displayMode) {
  try {
    return globalThis.temml.renderToString(source, {
      displayMode,
      trust: false,
      maxSize: [20, 20],
      maxExpand: 200,
      throwOnError: true,
    });
  } catch {
    return `<code>${parser.utils.escapeHtml(source)}</code>`;
  }
}

const parser = new MarkdownIt({ html: false, linkify: false, breaks: true })
  .disable("image")
  .use(tex, { delimiters: "all", render: formula });

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.nodeName !== "A") return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer");
});

// Both libraries write some styles as attributes, which the page's security policy would refuse one by one, loudly.
const STYLE = / style="[^"]*"/g; // in a text, quotation marks are escaped

/** The text of a model, laid out. */
export const laidOut = (text) => DOMPurify.sanitize(parser.render(text).replaceAll(STYLE, ""), ALLOWED);
