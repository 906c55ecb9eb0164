// Reads a folder that fairy2i-export wrote, from the server that the page came from.
import { PageError } from "./errors.js";

const REPAIR = "export the model again with fairy2i-export and put the whole folder there";

/** The folder's address for a name given in the page's own address: a sub-folder of the page's folder, nothing else. */
export function folderUrl(name, page) {
  const home = new URL("./", page);
  const url = new URL(`${name.replace(/\/+$/, "")}/`, home);
  if (url.origin !== home.origin || !url.pathname.startsWith(home.pathname) || url.pathname === home.pathname)
    throw new PageError(`?model=${name}: expected the name of a folder beside the page, such as ?model=model`);
  return url.href;
}

/**
 * Everything but the weights: what kind of model it is, and whether this page can run it.
 *
 * @param {string} url address of the folder, with a slash at its end
 * @param {boolean} definition whether the operator's definition shall be run where the folder has the custom operator
 */
export async function readFolder(url, definition) {
  const missing = `There is no model folder at ${url}: put an exported one there, or name another with ?model=NAME`;
  const genai = await json(url, "genai_config.json", missing);
  const decoder = genai.model?.decoder;
  const context = genai.model?.context_length;
  if (!decoder?.filename || !Number.isInteger(context))
    throw new PageError(`${url}genai_config.json names no decoder file or context length: ${REPAIR}`);
  const custom = decoder.session_options?.custom_ops_library !== undefined;
  if (custom && !definition)
    throw new PageError(
      `${url} was exported with the operator Fairy2iMatMul, which onnxruntime-web has no kernel for: export it with ` +
        "--backend dense or --backend matmulnbits (with --codes-from it keeps its codes, see docs/web.md), or add " +
        "&definition to this page's address to run the operator's slow definition",
    );
  const tokenizer = await json(url, "tokenizer.json", `${url}tokenizer.json is missing: ${REPAIR}`);
  const tokenizerConfig = (await json(url, "tokenizer_config.json")) ?? {};
  const generation = (await json(url, "generation_config.json")) ?? {};
  const template = (await text(url, "chat_template.jinja")) ?? namedTemplate(tokenizerConfig.chat_template);
  const eos = [genai.model.eos_token_id ?? []].flat();
  return { url, file: decoder.filename, context, eos, tokenizer, tokenizerConfig, generation, template };
}

/** The graph and its weights, as bytes. `progress(loaded, total)` hears how many have come; total is 0 if unknown. */
export async function readModel({ url, file }, progress) {
  const graph = await bytes(url, file);
  const data = await bytes(url, `${file}.data`, progress);
  return { graph, data, dataFile: `${file}.data` };
}

function namedTemplate(value) {
  if (!Array.isArray(value)) return value ?? null;
  const named = value.find(({ name }) => name === "default") ?? (value.length === 1 ? value[0] : null);
  return named?.template ?? null;
}

/** The response, or null if the server has no such file. Some servers answer with a page where there is nothing. */
async function get(url, name) {
  let response;
  try {
    response = await fetch(url + name);
  } catch {
    throw new PageError(
      `${url}${name} could not be fetched: the server does not answer; start it again and reload the page`,
    );
  }
  const page = response.headers.get("content-type")?.startsWith("text/html");
  if (response.status === 404 || (response.ok && page)) return null;
  if (!response.ok) throw new PageError(`${url}${name}: the server answered ${response.status} ${response.statusText}`);
  return response;
}

async function text(url, name) {
  return (await get(url, name))?.text() ?? null;
}

/** Parsed JSON; a file that is missing is an error with the text `missing`, or null without one. */
async function json(url, name, missing = null) {
  const content = await text(url, name);
  if (content === null) {
    if (missing !== null) throw new PageError(missing);
    return null;
  }
  try {
    return JSON.parse(content);
  } catch {
    throw new PageError(`${url}${name} is damaged, it is no JSON: ${REPAIR}`);
  }
}

async function bytes(url, name, progress = () => {}) {
  const response = await get(url, name);
  if (response === null) throw new PageError(`${url}${name} is missing: ${REPAIR}`);
  // the length of what is sent says nothing about the file if the server compresses
  const total = response.headers.has("content-encoding") ? 0 : Number(response.headers.get("content-length"));
  let loaded = 0;
  const counter = new TransformStream({
    transform(chunk, controller) {
      progress((loaded += chunk.length), total);
      controller.enqueue(chunk);
    },
  });
  try {
    return new Uint8Array(await new Response(response.body.pipeThrough(counter)).arrayBuffer());
  } catch {
    throw new PageError(
      `${url}${name} broke off after ${loaded} bytes: reload the page; if it happens again, memory is short`,
    );
  }
}
