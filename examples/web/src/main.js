// The page: forms and texts. The model runs in worker.js.
import { lineOf } from "./errors.js";

const at = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
const asked = new URL(location.href).searchParams;
let isChat = false;
let context = 0;
let output = null; // the element that the text being written goes to
let question = null; // the element of what was asked, in a chat

const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
worker.onerror = (event) =>
  show.error({ line: lineOf(event.message || "the page's worker could not be loaded: build the page again") });
worker.onmessage = ({ data: { kind, ...given } }) => show[kind](given);
worker.postMessage({
  action: "load",
  name: asked.get("model") || "model",
  page: location.href,
  threads: threads(),
  definition: asked.has("definition"),
});
at.status.textContent = "Looking for the model";

/** Without the headers of cross-origin isolation browsers allow no threads. */
function threads() {
  if (!crossOriginIsolated) return 1;
  return Math.max(1, Number(asked.get("threads")) || Math.ceil(navigator.hardwareConcurrency / 2));
}

const REASONS = {
  end: "the text is complete",
  limit: "the number of tokens asked for",
  stopped: "stopped",
  context: "the context is full",
};

/** What is done with each kind of message. */
const show = {
  progress({ loaded, total }) {
    at.status.textContent = `Loading weights: ${megabytes(loaded)}${total ? ` of ${megabytes(total)}` : ""}`;
  },
  preparing() {
    at.status.textContent = "Preparing the model";
  },
  ready(model) {
    ({ isChat, context } = model);
    const alone = crossOriginIsolated ? "" : " (the server sends no COOP and COEP headers)";
    at.status.textContent =
      `${isChat ? "Chat model" : "Model"} of ${megabytes(model.size)}, context ${context} tokens, ` +
      `${model.threads} thread${model.threads === 1 ? alone : "s"}`;
    if (isChat) {
      at["prompt-label"].textContent = "Your message";
      at.prompt.value = "";
      at.start.textContent = "Send";
      at.reset.hidden = false;
    }
    at.temperature.value = model.temperature;
    running(false);
  },
  piece({ piece, count, used, seconds }) {
    output.append(piece);
    at.speed.textContent = `${count} tokens${rate(count, seconds)}; context: ${used} of ${context}`;
  },
  done({ tokens, reason, seconds, prompt, cached }) {
    const read = `prompt of ${prompt} tokens${cached ? `, ${cached} of them kept from before` : ""}`;
    at.speed.textContent = `${tokens.length} tokens${rate(tokens.length, seconds)}; ${read}; ended: ${REASONS[reason]}`;
    at.tokens.textContent = tokens.join(" ");
    if (reason === "context")
      show.problem(
        `The context of ${context} tokens is full: ${isChat ? "begin a new conversation" : "the story ends here"}`,
      );
    if (isChat && reason === "stopped" && tokens.length === 0) giveBack();
    running(false);
  },
  problem(line) {
    at.error.textContent = line;
    at.error.hidden = false;
  },
  error({ line }) {
    show.problem(line);
    if (context === 0) {
      at.status.textContent = "Not ready";
      return;
    }
    if (isChat) giveBack();
    running(false);
  },
};

at.form.addEventListener("submit", (event) => {
  event.preventDefault();
  const prompt = at.prompt.value;
  at.error.hidden = true;
  if (isChat) {
    question = paragraph("user", prompt);
    output = paragraph("answer");
    at.prompt.value = "";
  } else {
    at.log.replaceChildren();
    output = paragraph("answer");
    const given = document.createElement("span");
    given.className = "given";
    given.textContent = prompt;
    output.append(given);
  }
  running(true);
  at.speed.textContent = "Reading the prompt";
  worker.postMessage({ action: "ask", prompt, limit: at.limit.valueAsNumber, temperature: at.temperature.valueAsNumber });
});

at.prompt.addEventListener("keydown", (event) => {
  if (isChat && event.key === "Enter" && !event.shiftKey && !at.start.disabled) {
    event.preventDefault();
    at.form.requestSubmit();
  }
});

at.stop.addEventListener("click", () => worker.postMessage({ action: "stop" }));

at.reset.addEventListener("click", () => {
  worker.postMessage({ action: "reset" });
  at.log.replaceChildren();
  at.error.hidden = true;
});

function paragraph(name, text = "") {
  const element = document.createElement("p");
  element.className = name;
  element.textContent = text;
  at.log.append(element);
  return element;
}

/** An answer that failed or never began is no turn: the question can be changed and asked again. */
function giveBack() {
  at.prompt.value = question.textContent;
  question.remove();
  output.remove();
}

function running(yes) {
  at.start.disabled = at.reset.disabled = yes;
  at.stop.disabled = !yes;
}

/** The first token comes with the prompt, so the time is that of the others. */
function rate(count, seconds) {
  return count > 1 && seconds > 0 ? `, ${((count - 1) / seconds).toFixed(1)} tokens/s` : "";
}

function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}
