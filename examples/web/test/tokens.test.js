// The page writes what Python writes, token by token, and asks no other host for anything.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { expected, isolatedServer, plainServer, startBrowser } from "./site.js";

let browser, isolated, plain;
before(async () => {
  [browser, isolated, plain] = await Promise.all([startBrowser(), isolatedServer(), plainServer()]);
});
after(async () => {
  await browser.close();
  await isolated.close();
  plain.close();
});

async function same(url, name, reference = expected[name]) {
  const visit = await browser.open(url);
  try {
    assert.equal(await visit.error(), null);
    const { prompt, limit, tokens, text } = reference;
    assert.ok(tokens.length >= 100, `Python wrote ${tokens.length} tokens only`);
    const found = await visit.ask(prompt, limit);
    assert.deepEqual(found.tokens, tokens);
    assert.equal(found.text, text);
    assert.match(found.line, /^\d+ tokens, [\d.]+ tokens\/s; prompt of \d+ tokens; ended: /);
    return { status: await visit.text("status"), requests: visit.requests };
  } finally {
    await visit.close();
  }
}

test("with threads, where the server allows them", async () => {
  const { status } = await same(`${isolated.url}?model=exact&threads=2`, "exact");
  assert.match(status, /, 2 threads$/);
});

test("with one thread on any server, and no request to another host", async () => {
  const { status, requests } = await same(`${plain.url}?model=exact&threads=2`, "exact");
  assert.match(status, /, 1 thread \(the server sends no COOP and COEP headers\)$/);
  assert.deepEqual(
    requests.filter((url) => !url.startsWith(plain.url)),
    [],
  );
  // what workers ask for is among them
  for (const end of ["/exact/model.onnx.data", ".wasm"])
    assert.ok(
      requests.some((url) => url.endsWith(end)),
      requests.join(),
    );
});

test("int8 activations are not used in the browser: --accuracy-level 4 computes as 0 does", async () => {
  assert.notDeepEqual(expected.level4.tokens, expected.exact.tokens);
  await same(`${isolated.url}?model=level4`, "level4", expected.exact);
});

for (const name of ["dense16", "cache16", "cache8"]) {
  test(`${name}: as Python`, () => same(`${isolated.url}?model=${name}`, name));
}

test("the operator's definition, when asked for", () => same(`${isolated.url}?model=operator&definition`, "operator"));
