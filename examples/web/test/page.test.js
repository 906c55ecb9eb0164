// What a visitor does and meets: stopping, conversations, errors of one line.
import assert from "node:assert/strict";
import { cp, mkdtemp, rename, rm, truncate, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { after, before, test } from "node:test";
import { SITE, expected, isolatedServer, startBrowser } from "./site.js";

let browser, server;
const copies = [];
before(async () => {
  [browser, server] = await Promise.all([startBrowser(), isolatedServer()]);
});
after(async () => {
  await browser.close();
  await server.close();
  for (const copy of copies) await rm(copy, { recursive: true });
});

/** Open a model, do something, close. */
async function visiting(name, act, using = browser) {
  const visit = await using.open(`${server.url}?model=${name}`);
  try {
    return await act(visit);
  } finally {
    await visit.close();
  }
}

/** The name of a copy of a model's folder, changed by `damage(folder)`. */
async function damaged(name, damage) {
  const copy = await mkdtemp(join(SITE, `${name}-`));
  copies.push(copy);
  await cp(join(SITE, name), copy, { recursive: true });
  await damage(copy);
  return basename(copy);
}

test("stop ends a story at once, and the next one is whole", async () => {
  await visiting("exact", async (visit) => {
    await visit.begin("Once upon a time", 500);
    await visit.page.waitForFunction(() => / of 512/.test(document.querySelector("#speed").textContent));
    await visit.page.click("#stop");
    const stopped = await visit.end();
    assert.match(stopped.line, /ended: stopped$/);
    assert.ok(stopped.tokens.length > 0 && stopped.tokens.length < 400, `${stopped.tokens.length} tokens`);
    const { prompt, limit, tokens } = expected.exact;
    assert.deepEqual((await visit.ask(prompt, limit)).tokens, tokens);
  });
});

test("stop is heard while a prompt is read; the question comes back and is not part of the conversation", async () => {
  await visiting("chat", async (visit) => {
    const question = "Once upon a time ".repeat(80);
    await visit.page.fill("#prompt", question);
    await visit.page.fill("#temperature", "0");
    await visit.page.evaluate(() => {
      document.querySelector("#start").click();
      document.querySelector("#stop").click();
    });
    await visit.page.waitForFunction(() => !document.querySelector("#start").disabled);
    assert.match(await visit.text("speed"), /^0 tokens; prompt of \d+ tokens; ended: stopped$/);
    assert.equal(await visit.page.inputValue("#prompt"), question);
    assert.equal(await visit.page.locator("#log p").count(), 0);
    const { turns, answer_limit: limit } = expected.chat;
    assert.deepEqual((await visit.ask(turns[0].question, limit)).tokens, turns[0].tokens);
  });
});

test("drawn texts differ", async () => {
  await visiting("exact", async (visit) => {
    const stories = [await visit.ask("Once upon a time", 60, 1), await visit.ask("Once upon a time", 60, 1)];
    assert.notEqual(stories[0].text, stories[1].text);
  });
});

test("a full context ends the story and says so; the prompt itself must fit", async () => {
  await visiting("exact", async (visit) => {
    const story = await visit.ask("Once upon a time ".repeat(90), 1000);
    assert.match(story.line, /ended: the context is full$/);
    assert.match(await visit.error(), /^The context of 512 tokens is full: the story ends here$/);
    await visit.ask("Once upon a time ".repeat(200));
    assert.match(
      await visit.error(),
      /^The context is full: the text has \d+ tokens and the model's context holds 512.*; shorten it$/,
    );
    assert.equal((await visit.ask("Tom had", 5)).tokens.length, 5);
    assert.equal(await visit.error(), null);
  });
});

for (const [name, { turns, answer_limit: limit }] of Object.entries(expected).filter(([, { turns }]) => turns.length > 0)) {
  test(`${name}: answers are those of Python, and the cache is kept from turn to turn`, async () => {
    await visiting(name, async (visit) => {
      assert.match(await visit.text("status"), /^Chat model/);
      for (const [turn, { question, text, tokens }] of turns.entries()) {
        const answer = await visit.ask(question, limit);
        assert.deepEqual(answer.tokens, tokens);
        assert.equal(answer.text, text);
        assert.match(answer.line, turn === 0 ? /prompt of \d+ tokens;/ : /, \d+ of them kept from before;/);
      }
      await visit.page.click("#reset");
      assert.equal(await visit.page.locator("#log p").count(), 0);
      const [{ question, tokens }] = turns;
      assert.deepEqual((await visit.ask(question, limit)).tokens, tokens);
      // a question that does not fit is given back, and the conversation goes on as if it had not been asked
      const long = `${question} `.repeat(2000);
      await visit.ask(long, limit);
      assert.match(
        await visit.error(),
        /^The context is full: the conversation has \d+ tokens .* or begin a new conversation$/,
      );
      assert.equal(await visit.page.inputValue("#prompt"), long);
      assert.equal(await visit.page.locator("#log p").count(), 2);
      assert.deepEqual((await visit.ask(turns[1].question, limit)).tokens, turns[1].tokens);
    });
  });
}

const DAMAGE = {
  "a graph that is none": {
    damage: (folder) => writeFile(join(folder, "model.onnx"), "no graph"),
    line: /^onnxruntime-web 1\.\d+\.\d+ cannot run this model: /,
  },
  "weights that are too short": {
    damage: (folder) => truncate(join(folder, "model.onnx.data"), 5000),
    line: /^onnxruntime-web 1\.\d+\.\d+ cannot run this model: /,
  },
  "no weights": {
    damage: (folder) => rm(join(folder, "model.onnx.data")),
    line: /model\.onnx\.data is missing: export the model again with fairy2i-export/,
  },
  "no tokenizer": {
    damage: (folder) => rename(join(folder, "tokenizer.json"), join(folder, "other.json")),
    line: /tokenizer\.json is missing: export the model again/,
  },
  "a tokenizer that is none": {
    damage: (folder) => writeFile(join(folder, "tokenizer.json"), "{}"),
    line: /^The folder's tokenizer cannot be used: /,
  },
  "a configuration that is no JSON": {
    damage: (folder) => writeFile(join(folder, "genai_config.json"), "{"),
    line: /genai_config\.json is damaged, it is no JSON: export the model again/,
  },
  "a configuration of something else": {
    damage: (folder) => writeFile(join(folder, "genai_config.json"), "{}"),
    line: /genai_config\.json names no decoder file or context length: export the model again/,
  },
};
for (const [what, { damage, line }] of Object.entries(DAMAGE)) {
  test(`one line for ${what}`, async () => {
    await visiting(await damaged("exact", damage), async (visit) => {
      const error = await visit.error();
      assert.match(error, line);
      assert.ok(!error.includes("\n"));
      assert.ok(await visit.page.isDisabled("#start"));
    });
  });
}

test("one line for a folder that is not there, and for one elsewhere", async () => {
  await visiting("absent", async (visit) => {
    assert.match(await visit.error(), /^There is no model folder at http.*\/absent\/: put an exported one there/);
    assert.deepEqual(
      visit.requests.filter((url) => url.endsWith(".onnx")),
      [],
    );
  });
  await visiting("https://example.org/model", async (visit) => {
    assert.match(await visit.error(), /expected the name of a folder beside the page/);
    assert.deepEqual(
      visit.requests.filter((url) => !url.startsWith(server.url)),
      [],
    );
  });
});

test("the custom operator is refused before its weights are loaded, with what to do", async () => {
  await visiting("operator", async (visit) => {
    assert.match(
      await visit.error(),
      /operator Fairy2iMatMul, which onnxruntime-web has no kernel for: export it with --backend/,
    );
    assert.deepEqual(
      visit.requests.filter((url) => /\.onnx|\.wasm/.test(url)),
      [],
    );
  });
});

test("one line for a browser without WebAssembly SIMD", async () => {
  const poor = await startBrowser("--js-flags=--no-enable-sse4-1"); // V8 has no SIMD on a processor without SSE 4.1
  try {
    await visiting(
      "exact",
      async (visit) => assert.match(await visit.error(), /^This browser has no WebAssembly SIMD/),
      poor,
    );
  } finally {
    await poor.close();
  }
});
