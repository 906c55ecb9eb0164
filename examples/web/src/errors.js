/** What a visitor or whoever set up the page can repair: one line that says what was found and what to do. */
export class PageError extends Error {}

/** One line for any error; those that nobody foresaw say so. */
export function lineOf(error) {
  const text = String(error?.message ?? error)
    .split("\n")[0]
    .trim();
  return error instanceof PageError ? text : `Unexpected error: ${text || error?.name}`;
}
