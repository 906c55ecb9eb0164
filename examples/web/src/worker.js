// Runs the model off the page's own thread. Messages in: load, ask, stop, reset; out: see the calls of postMessage.
import { simd } from "wasm-feature-detect";
import { Engine } from "./engine.js";
import { PageError, lineOf } from "./errors.js";
import { folderUrl, readFolder, readModel } from "./folder.js";
import { nextToken, recommended } from "./sampling.js";
import { StreamDecoder, Text } from "./text.js";

let folder, text, engine, sampling;
let messages = []; // of the conversation
let stopped = false;

const actions = { load, ask, stop, reset };
let busy = Promise.resolve(); // one action after the other, but stopping
onmessage = ({ data: { action, ...given } }) => {
  if (action === "stop") stop();
  else busy = busy.then(() => actions[action](given)).catch((error) => postMessage({ kind: "error", line: lineOf(error) }));
};

async function load({ name, page, threads, definition }) {
  if (typeof WebAssembly === "undefined" || !(await simd()))
    throw new PageError(
      "This browser has no WebAssembly SIMD, which onnxruntime-web needs: use one from 2023 or later, and allow WebAssembly",
    );
  folder = await readFolder(folderUrl(name, page), definition);
  text = new Text(folder);
  sampling = recommended(folder.generation, text.isChat);
  const model = await readModel(folder, (loaded, total) => postMessage({ kind: "progress", loaded, total }));
  postMessage({ kind: "preparing" });
  const size = model.graph.length + model.data.length;
  engine = await Engine.create(model, { threads, definition });
  const { context } = folder;
  postMessage({
    kind: "ready",
    isChat: text.isChat,
    context,
    size,
    threads: Engine.threads,
    temperature: sampling.temperature,
  });
}

/** Continue a story, or answer in the conversation. */
async function ask({ prompt, limit, temperature }) {
  stopped = false;
  const conversation = [...messages, { role: "user", content: prompt }];
  const ids = text.isChat ? text.encodeChat(conversation) : text.encode(prompt);
  if (ids.length === 0) throw new PageError("The text is empty: write how it begins");
  if (ids.length >= folder.context) {
    const [what, remedy] = text.isChat
      ? ["the conversation", "shorten it or begin a new conversation"]
      : ["the text", "shorten it"];
    const room = `the model's context holds ${folder.context}, one new token included`;
    throw new PageError(`The context is full: ${what} has ${ids.length} tokens and ${room}; ${remedy}`);
  }
  const stream = new StreamDecoder(text.decode, text.isChat ? [] : ids);
  const { answer, ...result } = await generate(ids, limit, { ...sampling, temperature }, stream);
  const begun = result.tokens.length > 0 || result.reason !== "stopped"; // else it ended within the prompt: no turn
  if (text.isChat && begun) messages = [...conversation, { role: "assistant", content: answer }];
  postMessage({ kind: "done", ...result });
}

async function generate(ids, limit, options, stream) {
  const made = [];
  let answer = "";
  const give = (piece, seconds = 0) => {
    answer += piece;
    postMessage({ kind: "piece", piece, count: made.length, used: engine.tokens.length, seconds });
  };
  // the last token is run even if the cache has it: its logits are needed
  const cached = engine.keepPrefix(ids.slice(0, -1));
  let logits = await engine.run(ids.slice(cached), pause);
  const begin = performance.now();
  const seconds = () => (performance.now() - begin) / 1000;
  let reason = logits === null ? "stopped" : null;
  while (reason === null) {
    const token = nextToken(logits, options, engine.tokens);
    if (folder.eos.includes(token)) {
      reason = "end";
      break;
    }
    made.push(token);
    give(stream.push(token), seconds());
    if (!(await pause())) reason = "stopped";
    else if (made.length >= limit) reason = "limit";
    else if (engine.tokens.length >= folder.context) reason = "context";
    else logits = await engine.run([token], pause);
  }
  const spent = seconds();
  give(stream.finish(), spent);
  return { answer, tokens: made, reason, seconds: spent, prompt: ids.length, cached };
}

const { port1, port2 } = new MessageChannel();
/** Lets messages in; says whether to go on. Timers would take 4 ms each. */
function pause() {
  return new Promise((resolve) => {
    port1.onmessage = () => resolve(!stopped);
    port2.postMessage(null);
  });
}

function stop() {
  stopped = true;
}

function reset() {
  messages = [];
}
