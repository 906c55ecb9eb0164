// The model in onnxruntime-web, and its key-value cache.
import * as ort from "onnxruntime-web/wasm";
import glueUrl from "onnxruntime-web/ort-wasm-simd-threaded.mjs?url";
import wasmUrl from "onnxruntime-web/ort-wasm-simd-threaded.wasm?url";
import { PageError } from "./errors.js";

const CHUNK = 64; // tokens of a prompt that are run at once: between two chunks the stop button is heard

export class Engine {
  /** Tokens whose keys and values are in the cache. */
  tokens = [];
  #session;
  #past; // tensors by the name of the input that takes them

  /**
   * @param {{graph: Uint8Array, data: Uint8Array, dataFile: string}} model
   * @param {{threads: number, definition: boolean}} options
   */
  static async create(model, { threads, definition }) {
    ort.env.wasm.numThreads = threads;
    ort.env.wasm.wasmPaths = { mjs: new URL(glueUrl, import.meta.url).href, wasm: new URL(wasmUrl, import.meta.url).href };
    const options = {
      executionProviders: ["wasm"],
      externalData: [{ path: model.dataFile, data: model.data }],
      logSeverityLevel: 3,
    };
    // unpacking the weights of the definition once for all makes intermediate tensors beyond the 4 GB of WebAssembly
    if (definition) options.extra = { optimization: { constant_folding_max_output_size_in_bytes: "1024" } };
    return new Engine(await explained(ort.InferenceSession.create(model.graph, options)));
  }

  constructor(session) {
    this.#session = session;
    this.#past = Object.fromEntries(this.#cacheInputs().map(({ name, type, shape }) => [name, empty(type, shape)]));
  }

  static get threads() {
    return ort.env.wasm.numThreads;
  }

  /** Keep what the cache has in common with `ids`, forget the rest; returns how many tokens that is. */
  keepPrefix(ids) {
    let length = 0;
    while (length < ids.length && length < this.tokens.length && ids[length] === this.tokens[length]) length++;
    if (length < this.tokens.length) {
      for (const name in this.#past) this.#past[name] = shortened(this.#past[name], length);
      this.tokens.length = length;
    }
    return length;
  }

  /**
   * Run tokens. `pause()` is awaited between chunks and says whether to go on.
   *
   * @returns {Promise<Float32Array | null>} logits of the last token, one per entry of the vocabulary; null if stopped
   */
  async run(ids, pause) {
    let logits = null;
    for (let start = 0; start < ids.length; start += CHUNK) {
      if (start > 0 && !(await pause())) return null;
      logits = await this.#step(ids.slice(start, start + CHUNK));
    }
    return logits;
  }

  async #step(ids) {
    const total = this.tokens.length + ids.length;
    const outputs = await explained(
      this.#session.run({
        input_ids: new ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]),
        attention_mask: new ort.Tensor("int64", new BigInt64Array(total).fill(1n), [1, total]),
        ...this.#past,
      }),
    );
    for (const name in this.#past) this.#past[name] = outputs[name.replace("past_key_values.", "present.")];
    this.tokens.push(...ids);
    const { data, dims } = outputs.logits;
    return data.subarray(data.length - dims[2]);
  }

  #cacheInputs() {
    return this.#session.inputMetadata.filter(({ name }) => name.startsWith("past_key_values."));
  }
}

/** A tensor without tokens; dims of the cache are [batch, heads, tokens, head size]. */
function empty(type, [, heads, , size]) {
  const array = { float32: Float32Array, float16: Uint16Array, int8: Int8Array }[type];
  if (!array)
    throw new PageError(
      `The model has a key-value cache of type ${type}: export it with --kv-cache float32, float16 or int8`,
    );
  return new ort.Tensor(type, new array(0), [1, heads, 0, size]);
}

/** The first `length` tokens of a tensor of the cache. */
function shortened({ type, data, dims: [batch, heads, tokens, size] }, length) {
  const kept = new data.constructor(batch * heads * length * size);
  for (let head = 0; head < batch * heads; head++)
    kept.set(data.subarray(head * tokens * size, (head * tokens + length) * size), head * length * size);
  return new ort.Tensor(type, kept, [batch, heads, length, size]);
}

/** Errors of onnxruntime-web in words for whoever exported the model. */
async function explained(promise) {
  try {
    return await promise;
  } catch (error) {
    const text = String(error?.message ?? error);
    if (/bad_alloc|out of memory|memory access out of bounds|allocation failed/i.test(text))
      throw new PageError(
        "Not enough memory for this model: WebAssembly has at most 4 GB; close other tabs, or export a smaller form of it",
      );
    throw new PageError(`onnxruntime-web ${ort.env.versions.web ?? ort.env.versions.common} cannot run this model: ${text}`);
  }
}
