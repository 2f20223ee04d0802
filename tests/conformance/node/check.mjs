// The official Node clients over everything that is served: node check.mjs http://127.0.0.1:8000
// Prints one line per check; exit status 1 when one fails. test_node.py runs it where npm install was done.
import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const url = process.argv[2] ?? "http://127.0.0.1:8000";
const key = process.env.OCTAVO_API_KEY ?? "none";
const openai = new OpenAI({ baseURL: url + "/v1", apiKey: key, maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: url, apiKey: key, maxRetries: 0 });
const model = (await openai.models.list()).data[0].id;
const messages = [{ role: "developer", content: "Be brief." }, { role: "user", content: "hi" }];
const said = { model, messages, temperature: 0, max_completion_tokens: 24 };
const tools = [{ type: "function", function: { name: "look", description: "Looks.", parameters: {
  type: "object", properties: { at: { type: "string", enum: ["left", "right"] } }, required: ["at"], additionalProperties: false } } }];

const checks = {
  async models() {
    assert.equal((await openai.models.retrieve(model)).object, "model");
  },
  async "chat, with its request id"() {
    const answer = await openai.chat.completions.create({ ...said, logprobs: true, top_logprobs: 2 });
    const [choice] = answer.choices;
    assert.equal(choice.logprobs.content.map((entry) => entry.token).join(""), choice.message.content);
    assert.equal(choice.message.refusal, null);
    assert.ok(answer._request_id && answer.usage.total_tokens > 0);
  },
  async "chat, streamed"() {
    const plain = await openai.chat.completions.create(said);
    let text = "", usage = null;
    const stream = await openai.chat.completions.create({ ...said, stream: true, stream_options: { include_usage: true } });
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, plain.choices[0].message.content);
    assert.equal(usage.completion_tokens, plain.usage.completion_tokens);
  },
  async "chat, by the streaming helper"() {
    const runner = openai.chat.completions.stream(said);
    let text = "";
    runner.on("content", (piece) => { text += piece; });
    assert.equal((await runner.finalChatCompletion()).choices[0].message.content, text);
  },
  async "a stream that is left"() {
    const stream = await openai.chat.completions.create({ ...said, max_completion_tokens: 500, stream: true });
    for await (const _ of stream) break;
    stream.controller.abort();
  },
  async "a call that is required"() {
    const answer = await openai.chat.completions.create({ ...said, max_completion_tokens: 64, tools, tool_choice: "required",
      parallel_tool_calls: false });
    const [choice] = answer.choices;
    assert.equal(choice.finish_reason, "tool_calls");
    assert.ok(["left", "right"].includes(JSON.parse(choice.message.tool_calls[0].function.arguments).at));
  },
  async "a call, streamed"() {
    const runner = openai.chat.completions.stream({ ...said, max_completion_tokens: 64, tools,
      tool_choice: { type: "function", function: { name: "look" } } });
    const [choice] = (await runner.finalChatCompletion()).choices;
    assert.ok(["left", "right"].includes(JSON.parse(choice.message.tool_calls[0].function.arguments).at));
  },
  async completions() {
    const asked = { model, prompt: ["This", "That"], max_tokens: 4, temperature: 0, logprobs: 1 };
    const answer = await openai.completions.create(asked);
    const texts = ["", ""];
    for await (const chunk of await openai.completions.create({ ...asked, stream: true })) {
      texts[chunk.choices[0].index] += chunk.choices[0].text;
    }
    assert.deepEqual(texts, answer.choices.map((choice) => choice.text));
  },
  async embeddings() {
    const input = ["one", "two"];
    const asBase64 = await openai.embeddings.create({ model, input });
    const asFloats = await openai.embeddings.create({ model, input, encoding_format: "float" });
    assert.equal(asBase64.data.length, 2);
    asBase64.data[1].embedding.forEach((x, i) => assert.ok(Math.abs(x - asFloats.data[1].embedding[i]) < 1e-6));
  },
  async responses() {
    const asked = { model, input: "hi", temperature: 0, max_output_tokens: 24 };
    const answer = await openai.responses.create(asked);
    assert.equal(answer.object, "response");
    let text = "", last = null;
    for await (const event of await openai.responses.create({ ...asked, stream: true })) {
      if (event.type === "response.output_text.delta") text += event.delta;
      last = event;
    }
    assert.equal(text, answer.output_text);
    assert.ok(["response.completed", "response.incomplete"].includes(last.type));
    const next = await openai.responses.create({ ...asked, previous_response_id: answer.id });
    assert.equal(next.previous_response_id, answer.id);
  },
  async "responses, by the streaming helper"() {
    const runner = openai.responses.stream({ model, input: "hi", temperature: 0, max_output_tokens: 24 });
    assert.equal((await runner.finalResponse()).object, "response");
  },
  async "messages of Anthropic"() {
    const asked = { model, max_tokens: 24, temperature: 0, system: "Be brief.", messages: [{ role: "user", content: "hi" }] };
    const answer = await anthropic.messages.create(asked);
    assert.equal(answer.type, "message");
    const stream = anthropic.messages.stream(asked);
    let text = "";
    stream.on("text", (piece) => { text += piece; });
    const final = await stream.finalMessage();
    assert.deepEqual(final.content, answer.content);
    assert.equal(text, answer.content.map((block) => block.text ?? "").join(""));
    const { max_tokens, temperature, ...counted } = asked;
    const { input_tokens, cache_read_input_tokens } = answer.usage;
    assert.equal((await anthropic.messages.countTokens(counted)).input_tokens, input_tokens + (cache_read_input_tokens ?? 0));
  },
  async failures() {
    await assert.rejects(openai.chat.completions.create({ ...said, temperature: -1 }), (error) =>
      error instanceof OpenAI.BadRequestError && error.param === "temperature" && Boolean(error.requestID));
    await assert.rejects(openai.chat.completions.create({ ...said, model: "other", stream: true }), OpenAI.NotFoundError);
    await assert.rejects(anthropic.messages.create({ model: "other", max_tokens: 1, messages: [] }), Anthropic.APIError);
  },
};

const needModel = ["a call that is required", "a call, streamed"]; // the tests' fake engine follows no grammar
let failed = 0;
for (const [name, check] of Object.entries(checks)) {
  if (model === "fake-model" && needModel.includes(name)) continue;
  try {
    await check();
    console.log("ok  ", name);
  } catch (error) {
    failed += 1;
    console.log("FAIL", name, error?.stack ?? error);
  }
}
process.exit(failed ? 1 : 0);
