// The next token from the logits: steps and order are those of fairy2i_runtime (and of Hugging Face transformers).
import { PageError } from "./errors.js";

const CHAT = { temperature: 0.4, topP: 0.9, repetitionPenalty: 1.1 }; // the most likely tokens alone go in circles

/** What the folder's generation_config.json recommends; for chats that it says nothing about, what `fairy2i chat` takes. */
export function recommended(generation, isChat) {
  const { do_sample, temperature, top_k, top_p, repetition_penalty } = generation;
  const stated = [temperature, top_k, top_p].some((value) => typeof value === "number");
  if (do_sample ?? stated)
    return {
      temperature: temperature ?? 1,
      topK: top_k ?? 50,
      topP: top_p ?? 1,
      repetitionPenalty: repetition_penalty ?? 1,
    };
  return { temperature: 0, topK: 0, topP: 1, repetitionPenalty: repetition_penalty ?? 1, ...(isChat ? CHAT : {}) };
}

/**
 * @param {Float32Array} logits one per entry of the vocabulary
 * @param {{temperature: number, topK?: number, topP?: number, repetitionPenalty?: number}} options at temperature 0 the most
 *   likely token is taken and nothing else counts
 * @param {number[]} tokens everything before, for the repetition penalty
 * @param {() => number} random from 0 up to 1
 */
export function nextToken(logits, { temperature, topK = 0, topP = 1, repetitionPenalty = 1 }, tokens, random = Math.random) {
  const best = largest(logits);
  if (!Number.isFinite(logits[best]))
    throw new PageError(
      "The model gave logits that are not finite: its weights are damaged; verify the folder with fairy2i verify",
    );
  if (temperature === 0) return best;
  const scores = Float32Array.from(logits);
  for (const token of new Set(tokens)) scores[token] *= scores[token] < 0 ? repetitionPenalty : 1 / repetitionPenalty;
  const smallest = topK > 0 && topK < scores.length ? scores.slice().sort()[scores.length - topK] : -Infinity;
  let kept = [...scores.keys()].filter((token) => scores[token] >= smallest);
  const top = scores[largest(scores)];
  const weight = (token) => Math.exp((scores[token] - top) / temperature);
  if (topP < 1) kept = mostLikely(kept, weight, topP);
  let left = random() * total(kept, weight);
  return kept.find((token) => (left -= weight(token)) < 0) ?? kept.at(-1);
}

/** The fewest tokens whose weights make up `share` of all. */
function mostLikely(tokens, weight, share) {
  const sum = total(tokens, weight);
  const least = ((1 - share) * sum) / tokens.length; // those below make up less than may be left out
  const order = tokens.filter((token) => weight(token) >= least).sort((a, b) => weight(b) - weight(a));
  let count = 0;
  for (let reached = 0; count < order.length && reached < share * sum; count++) reached += weight(order[count]);
  return order.slice(0, count);
}

function total(tokens, weight) {
  return tokens.reduce((sum, token) => sum + weight(token), 0);
}

function largest(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}
