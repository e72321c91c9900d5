// The end of the page stays in view while something is written, for a reader who is there.

const NEAR = 80; // pixels from the end that count as there

/** Go to the end of the page, where what is new stands. */
export const toEnd = () => scrollTo(0, document.documentElement.scrollHeight);

/** Change the page; a reader at its end stays there, one who has scrolled up stays where they are. */
export function following(change) {
  const page = document.documentElement;
  const wasThere = page.scrollHeight - innerHeight - scrollY < NEAR;
  change();
  if (wasThere) toEnd();
}
