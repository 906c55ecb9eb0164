// Text to tokens and back, and conversations to text.
import { Template } from "@huggingface/jinja";
import { Tokenizer } from "@huggingface/tokenizers";
import { PageError } from "./errors.js";

const UNFINISHED = /\uFFFD+$/; // what tokenizers decode the bytes of an unfinished character to

export class Text {
  #tokenizer;
  #template = null;
  #special; // bos_token and the like, which templates refer to

  /** @param {{tokenizer: object, tokenizerConfig: object, template: string | null}} folder */
  constructor({ tokenizer, tokenizerConfig, template }) {
    try {
      this.#tokenizer = new Tokenizer(tokenizer, tokenizerConfig);
      if (template !== null) this.#template = new Template(template);
    } catch (error) {
      throw new PageError(
        `The folder's ${this.#tokenizer ? "chat template" : "tokenizer"} cannot be used: ${error.message}`,
      );
    }
    const names = Object.entries(tokenizerConfig).filter(([name]) => name.endsWith("_token"));
    this.#special = Object.fromEntries(names.map(([name, value]) => [name, value?.content ?? value]));
  }

  get isChat() {
    return this.#template !== null;
  }

  /** Token ids of a text; the beginning-of-text token is added if the tokenizer does so. */
  encode(text, addSpecialTokens = true) {
    return this.#tokenizer.encode(text, { add_special_tokens: addSpecialTokens }).ids;
  }

  /** Token ids of a conversation, with the beginning of an answer. */
  encodeChat(messages) {
    try {
      const variables = { tools: null, documents: null, ...this.#special };
      return this.encode(this.#template.render({ ...variables, messages, add_generation_prompt: true }), false);
    } catch (error) {
      throw new PageError(`The chat template refuses the conversation: ${error.message}`);
    }
  }

  decode = (ids) =>
    ids.length ? this.#tokenizer.decode(ids, { skip_special_tokens: true, clean_up_tokenization_spaces: false }) : "";
}

/**
 * Tokens one at a time to pieces of text, whole characters only. The pieces together are the text of context and tokens,
 * less that of the context. What a token decodes to may depend on the text before it, so the last few are decoded together.
 */
export class StreamDecoder {
  #decode;
  #window; // tokens that are decoded together
  #boundary; // those before it are out completely
  #given; // the text of the window that is out

  /** @param {(ids: number[]) => string} decode; without context the stream is a text of its own */
  constructor(decode, context = []) {
    this.#decode = decode;
    this.#window = [...context];
    this.#boundary = context.length;
    this.#given = decode(this.#window);
  }

  push(token) {
    this.#window.push(token);
    const text = this.#windowText();
    const certain = text.replace(UNFINISHED, "");
    const piece = certain.slice(this.#given.length);
    if (certain === text) this.#slide();
    else this.#given += piece;
    return piece;
  }

  /** The end of the stream: what was held back, unfinished characters as U+FFFD. */
  finish() {
    return this.#windowText().slice(this.#given.length);
  }

  #windowText() {
    const text = this.#decode(this.#window);
    if (text.startsWith(this.#given)) return text;
    // bytes that are no UTF-8 made the decoder take back characters that are out already: go on after them
    this.#window = this.#window.slice(this.#boundary);
    this.#boundary = 0;
    this.#given = "";
    return this.#decode(this.#window);
  }

  /** All is out: keep the last step's tokens as context if they stand for text, else the next would lose its space. */
  #slide() {
    const last = this.#window.slice(this.#boundary);
    if (this.#decode(last) !== "") this.#window = last;
    this.#given = this.#decode(this.#window);
    this.#boundary = this.#window.length;
  }
}
