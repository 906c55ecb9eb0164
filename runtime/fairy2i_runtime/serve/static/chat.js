"use strict";
// One conversation with /v1/chat/completions. What the model writes is only ever set as text, never as markup.

const $ = (id) => document.getElementById(id);
let messages = []; // those that went well, as the interface wants them
let running = null; // AbortController of the answer that is being written
let key = sessionStorage.getItem("fairy2i-key") || "";

function headers() {
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

function show(role, text) {
  const box = document.createElement("div");
  box.className = `message ${role}`;
  box.textContent = text;
  $("messages").append(box);
  box.scrollIntoView({ block: "end" });
  return box;
}

async function check(response) {
  if (response.ok) return response;
  if (response.status === 401) $("key-form").hidden = false;
  let message = `${response.status} ${response.statusText}`;
  try {
    message = (await response.json()).error.message;
  } catch { /* not from our server: the status has to do */ }
  throw new Error(message);
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let held = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (held + value).split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

function request(asked) {
  const body = { messages: asked, stream: true, stream_options: { include_usage: true } };
  if ($("temperature").value !== "") body.temperature = Number($("temperature").value);
  if ($("max-tokens").value !== "") body.max_tokens = Number($("max-tokens").value);
  return JSON.stringify(body);
}

async function ask(text) {
  const system = $("system").value.trim();
  const mine = { role: "user", content: text };
  const question = show("user", text);
  const box = show("assistant", "");
  box.classList.add("writing");
  running = new AbortController();
  $("send").hidden = true;
  $("stop").hidden = false;
  say("");
  let answer = "";
  let complete = false;
  try {
    const asked = [...(system ? [{ role: "system", content: system }] : []), ...messages, mine];
    const init = { method: "POST", headers: headers(), body: request(asked), signal: running.signal };
    const response = await check(await fetch("v1/chat/completions", init));
    for await (const event of events(response.body)) {
      if (event.error) throw new Error(event.error.message);
      for (const choice of event.choices) {
        answer += choice.delta.content || "";
        box.textContent = answer;
        if (choice.finish_reason) complete = true;
        if (choice.finish_reason === "length") say("cut off: the limit of tokens was reached");
      }
      if (event.usage && !$("status").textContent) {
        const { prompt_tokens: read, completion_tokens: written, prompt_tokens_details: found } = event.usage;
        say(`${read} tokens read (${found.cached_tokens} of them kept from before), ${written} written`);
      }
      $("messages").scrollTop = $("messages").scrollHeight;
    }
    if (!complete) throw new Error("the server ended the answer early");
  } catch (error) {
    if (error.name === "AbortError") say("stopped");
    else say(error.message, true);
  }
  box.classList.remove("writing");
  if (answer) {
    messages.push(mine, { role: "assistant", content: answer });
  } else if (!complete) {
    question.remove();
    box.remove();
    if (!$("text").value) $("text").value = text; // to be sent again
  }
  running = null;
  $("send").hidden = false;
  $("stop").hidden = true;
}

async function showModel() {
  try {
    const found = await (await check(await fetch("v1/models", { headers: headers() }))).json();
    $("model").textContent = found.data[0].id;
    $("key-form").hidden = true;
    say("");
  } catch (error) {
    say(error.message, true);
  }
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value;
  if (running || !text.trim()) return;
  $("text").value = "";
  ask(text);
});
$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("form").requestSubmit();
});
$("stop").addEventListener("click", () => running && running.abort());
$("new").addEventListener("click", () => {
  if (running) running.abort();
  messages = [];
  $("messages").replaceChildren();
  say("");
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value;
  sessionStorage.setItem("fairy2i-key", key);
  showModel();
});
showModel();
