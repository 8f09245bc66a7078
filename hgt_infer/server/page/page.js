"use strict";

const form = document.getElementById("form");
const tweets = document.getElementById("tweets");
const state = document.getElementById("status");
const stop = document.getElementById("stop");
let running = null; // the AbortController of the request that runs

function say(text, isWrong = false) {
  state.textContent = text;
  state.classList.toggle("wrong", isWrong);
}

async function fail(response) {
  const body = await response.json().catch(() => null);
  throw new Error(body?.error?.message ?? `the service answered ${response.status}`);
}

async function loadModels() {
  const response = await fetch("v1/models");
  if (!response.ok) await fail(response);
  const { data } = await response.json();
  form.model.replaceChildren(...data.map(({ id }) => new Option(id)));
  document.getElementById("models").hidden = data.length < 2;
}

function card(prompt) {
  const item = document.createElement("li");
  const text = document.createElement("p");
  const given = document.createElement("span");
  const made = document.createElement("span");
  given.className = "given";
  given.textContent = prompt;
  text.append(given, made);
  const copy = document.createElement("button");
  copy.type = "button";
  copy.textContent = "Copy";
  copy.setAttribute("aria-label", `Copy tweet ${tweets.children.length + 1}`);
  copy.disabled = true;
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(given.textContent + made.textContent);
    copy.textContent = "Copied";
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  });
  item.className = "growing";
  item.append(text, copy);
  tweets.append(item);
  return {
    grow(piece) { made.textContent += piece; },
    end() { item.className = ""; copy.disabled = false; },
  };
}

/** Yields the data of each server-sent event, parsed, up to [DONE]. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    buffer += value;
    const parts = buffer.split("\n\n");
    buffer = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function write(signal) {
  const body = {
    model: form.model.value,
    prompt: form.prompt.value,
    n: form.n.valueAsNumber,
    max_tokens: form.max_tokens.valueAsNumber,
    temperature: form.temperature.valueAsNumber,
    top_p: form.top_p.valueAsNumber,
    stream: true,
    stream_options: { include_usage: true },
  };
  if (form.seed.value !== "") body.seed = form.seed.valueAsNumber;
  tweets.replaceChildren();
  const cards = Array.from({ length: body.n }, () => card(body.prompt));
  const start = performance.now();
  const seconds = () => (performance.now() - start) / 1000;
  try {
    const response = await fetch("v1/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
    if (!response.ok) await fail(response);
    say("Writing …");
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      for (const { index, text, finish_reason } of event.choices) {
        cards[index].grow(text);
        if (finish_reason) cards[index].end();
      }
      if (event.usage) {
        const count = event.usage.completion_tokens;
        say(`${count} tokens in ${seconds().toFixed(2)} s: ${Math.round(count / seconds())} a second`);
      }
    }
  } finally {
    cards.forEach((each) => each.end());
  }
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  running?.abort();
  const mine = running = new AbortController();
  stop.disabled = false;
  try {
    await write(mine.signal);
  } catch (error) {
    if (running === mine) say(mine.signal.aborted ? "Stopped." : `${error.message}.`, !mine.signal.aborted);
  } finally {
    if (running === mine) {
      running = null;
      stop.disabled = true;
    }
  }
});

stop.addEventListener("click", () => running?.abort());
form.prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    form.requestSubmit();
  }
});
loadModels().catch((error) => say(`${error.message}.`, true));
