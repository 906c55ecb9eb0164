// Tokens, streams, chat templates and sampling, without a browser.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { folderUrl } from "../src/folder.js";
import { nextToken, recommended } from "../src/sampling.js";
import { StreamDecoder, Text } from "../src/text.js";
import { SITE, expected } from "./site.js";

function textOf(name, template = null) {
  const read = (file) => JSON.parse(readFileSync(join(SITE, name, file), "utf8"));
  return new Text({ tokenizer: read("tokenizer.json"), tokenizerConfig: read("tokenizer_config.json"), template });
}

for (const [name, { encodings }] of Object.entries(expected)) {
  test(`${name}: token ids are those of Python`, () => {
    const text = textOf(name);
    assert.deepEqual(Object.fromEntries(Object.keys(encodings).map((given) => [given, text.encode(given)])), encodings);
  });
}

for (const name of Object.keys(expected).filter((each) => ["exact", "smollm2"].includes(each))) {
  test(`${name}: a stream gives whole characters, and together the text`, () => {
    const text = textOf(name);
    const given = "Grüße 你好 😀👩‍👩‍👧 end";
    for (const context of [[], text.encode("Once upon")]) {
      const stream = new StreamDecoder(text.decode, context);
      const ids = text.encode(given, false);
      const pieces = ids.map((id) => stream.push(id));
      assert.ok(pieces.length > 12);
      assert.ok(!pieces.join("").includes("\uFFFD"));
      const whole = text.decode([...context, ...ids]).slice(text.decode(context).length);
      assert.equal(pieces.join("") + stream.finish(), whole);
      assert.ok(whole.trim() === given);
    }
  });
}

test("a stream that ends within a character says so once", () => {
  const text = textOf("exact");
  const stream = new StreamDecoder(text.decode);
  const ids = text.encode("a😀", false).slice(0, -1);
  const pieces = ids.map((id) => stream.push(id)).join("");
  assert.equal(pieces, "a");
  assert.match(stream.finish(), /^\uFFFD+$/);
});

test("templates that are damaged or refuse are one line", () => {
  assert.throws(() => textOf("exact", "{% for %}"), /chat template cannot be used/);
  const refusing = textOf("exact", "{{ raise_exception('no roles') }}");
  assert.throws(() => refusing.encodeChat([]), /The chat template refuses the conversation: .*no roles/);
});

test("sampling keeps what its options say, in proportion", () => {
  const logits = Float32Array.from([1, 3, 2, -1, 2.5]);
  const drawn = (options, tokens = []) => {
    const counts = new Map();
    for (let i = 0; i < 1000; i++) {
      const token = nextToken(logits, options, tokens, () => (i + 0.5) / 1000);
      counts.set(token, (counts.get(token) ?? 0) + 1);
    }
    return Object.fromEntries(counts);
  };
  const shares = (tokens, temperature) => {
    const weights = tokens.map((token) => Math.exp(logits[token] / temperature));
    const sum = weights.reduce((a, b) => a + b);
    return Object.fromEntries(tokens.map((token, i) => [token, (1000 * weights[i]) / sum]));
  };
  const near = (found, wanted) => {
    assert.deepEqual(Object.keys(found).sort(), Object.keys(wanted).sort());
    for (const token in wanted)
      assert.ok(Math.abs(found[token] - wanted[token]) <= 1, `${token}: ${found[token]}, ${wanted[token]}`);
  };
  near(drawn({ temperature: 0 }), { 1: 1000 });
  near(drawn({ temperature: 1 }), shares([0, 1, 2, 3, 4], 1));
  near(drawn({ temperature: 0.5, topK: 3 }), shares([1, 4, 2], 0.5));
  near(drawn({ temperature: 1, topP: 0.7 }), shares([1, 4], 1));
  near(drawn({ temperature: 1, topK: 1, repetitionPenalty: 2 }, [1, 1]), { 4: 1000 });
  near(drawn({ temperature: 1, topK: 4, repetitionPenalty: 1.5 }, [3, 3]), shares([0, 1, 2, 4], 1));
  assert.throws(() => nextToken(Float32Array.from([NaN, 1]), { temperature: 0 }, []), /not finite/);
});

test("what generation_config.json recommends", () => {
  assert.deepEqual(recommended({}, false), { temperature: 0, topK: 0, topP: 1, repetitionPenalty: 1 });
  assert.deepEqual(recommended({}, true), { temperature: 0.4, topK: 0, topP: 0.9, repetitionPenalty: 1.1 });
  assert.deepEqual(recommended({ top_p: 0.8 }, true), { temperature: 1, topK: 50, topP: 0.8, repetitionPenalty: 1 });
});

test("models are taken from beside the page only", () => {
  const page = "http://localhost/some/index.html?model=x";
  assert.equal(folderUrl("model", page), "http://localhost/some/model/");
  assert.equal(folderUrl("models/a/", page), "http://localhost/some/models/a/");
  for (const name of ["https://example.org/model", "//example.org/x", "../other", "/other", ".", "x/../.."])
    assert.throws(() => folderUrl(name, page), /expected the name of a folder beside the page/, name);
});
