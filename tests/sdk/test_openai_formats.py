"""What OpenAI's official client can ask beyond plain chats: formats, tools, choices, log probabilities, embeddings; PLEXUS_URL names the node."""

import json
import math
import os
import re
import unittest

import openai

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
PARIS = "The capital of France is Paris."
STORY = [{"role": "user", "content": "Tell me a story about a fox named Ruby."}]
OSLO = [{"role": "user", "content": "What is the weather in Oslo?"}]
SUM = [{"role": "user", "content": "What is 23 + 45? Think step by step."}]
CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "people": {"type": "integer", "minimum": 1, "maximum": 99999},
        "kind": {"enum": ["town", "capital"]},
    },
    "required": ["city", "people", "kind"],
    "additionalProperties": False,
}


def tool(name, properties, required):
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": f"{name} of a city", "parameters": schema}}


WEATHER = tool("get_weather", {"city": {"type": "string", "maxLength": 30}}, ["city"])
TIME = tool("get_time", {"zone": {"enum": ["UTC", "CET"]}, "digits": {"type": "integer", "minimum": 0, "maximum": 9}}, ["zone", "digits"])


def named(function):
    return {"type": "function", "function": {"name": function}}


class Node(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.client = openai.OpenAI(base_url=os.environ["PLEXUS_URL"] + "/v1", api_key="none", max_retries=0, timeout=60)

    def chat(self, messages, **more):
        return self.client.chat.completions.create(**{"model": "pip", "messages": messages, "temperature": 0, **more})

    def refused(self, param, *words, messages=FRANCE, **more):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat(messages, **more)
        self.assertEqual(caught.exception.param, param, caught.exception)
        for word in words:
            self.assertIn(word, str(caught.exception))

    def gather(self, stream):
        """The choices of a stream: content, reasoning, calls, finish reason, log probabilities, by index."""
        choices = {}
        for chunk in stream:
            for part in chunk.choices:
                one = choices.setdefault(part.index, {"content": "", "reasoning": "", "calls": [], "finish": None, "logprobs": []})
                one["content"] += part.delta.content or ""
                one["reasoning"] += getattr(part.delta, "reasoning_content", None) or ""
                for call in part.delta.tool_calls or []:
                    if call.id is not None:
                        self.assertEqual((call.index, call.type), (len(one["calls"]), "function"))
                        one["calls"].append({"id": call.id, "name": call.function.name, "arguments": ""})
                    one["calls"][call.index]["arguments"] += call.function.arguments
                one["finish"] = part.finish_reason or one["finish"]
                one["logprobs"] += part.logprobs.content if part.logprobs else []
        return [choices[index] for index in sorted(choices)]


class Formats(Node):
    def check_city(self, text):
        city = json.loads(text)
        self.assertEqual(list(city), ["city", "people", "kind"])
        self.assertLessEqual(len(city["city"]), 20)
        self.assertTrue(1 <= city["people"] <= 99999 and city["kind"] in ("town", "capital"), city)

    def test_a_strict_schema_is_followed_streamed_and_not(self):
        form = {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": CITY}}
        for temperature in (0, 1):
            whole = self.chat(FRANCE, response_format=form, temperature=temperature, seed=3)
            self.assertEqual(whole.choices[0].finish_reason, "stop")
            self.check_city(whole.choices[0].message.content)
            [streamed] = self.gather(self.chat(FRANCE, response_format=form, temperature=temperature, seed=3, stream=True))
            self.assertEqual(streamed["content"], whole.choices[0].message.content)

    def test_any_json_object_is_one(self):
        answer = self.chat(
            [{"role": "user", "content": "Write JSON for a person named Ruby who is 7 years old."}], response_format={"type": "json_object"}
        )
        self.assertIsInstance(json.loads(answer.choices[0].message.content), dict)

    def test_guided_answers_are_followed(self):
        def guided(**form):
            return self.chat(FRANCE, extra_body=form, max_tokens=60).choices[0].message.content

        self.assertRegex(guided(guided_regex=r"\d{4}/[a-z]+"), r"^\d{4}/[a-z]+$")
        self.assertRegex(guided(guided_regex=r"^[A-C]\/[0-9]{2}$"), r"^[A-C]/[0-9]{2}$")
        self.assertIn(guided(guided_choice=["Lyon", 'a "quoted" town', "Paris\n"]), ("Lyon", 'a "quoted" town', "Paris\n"))
        self.assertEqual(guided(guided_grammar='start: "a" b "}"\nb: "/" | "//"\n').replace("//", "/"), "a/}")
        self.check_city(guided(guided_json=CITY))
        self.check_city(guided(structured_outputs={"json": CITY}))
        self.assertIn(guided(structured_outputs={"choice": ["yes", "no"]}), ("yes", "no"))

    def test_a_legacy_completion_follows_a_form_too(self):
        answer = self.client.completions.create(model="pip", prompt="On", temperature=0, max_tokens=30, extra_body={"guided_regex": "[0-9]{3}"})
        self.assertRegex(answer.choices[0].text, r"^[0-9]{3}$")

    def test_what_cannot_be_followed_is_refused_with_the_reason(self):
        schema = {"type": "thing"}
        form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
        self.refused("response_format", "thing", response_format=form)
        self.refused("guided_json", "thing", extra_body={"guided_json": schema})
        self.refused("structured_outputs.json", "thing", extra_body={"structured_outputs": {"json": schema}})
        self.refused("response_format.type", "xml", response_format={"type": "xml"})
        self.refused("guided_regex", "(", extra_body={"guided_regex": "("})
        self.refused("guided_grammar", "start", extra_body={"guided_grammar": 'begin: "a"'})
        self.refused("guided_choice", "empty", extra_body={"guided_choice": []})
        self.refused("guided_regex", "response_format", extra_body={"guided_regex": "a"}, response_format={"type": "json_object"})
        self.refused("ignore_eos", "grammar", extra_body={"ignore_eos": True, "guided_regex": "a"})


class Tools(Node):
    def test_a_call_is_made_streamed_as_whole_and_its_result_is_told(self):
        answer = self.chat(OSLO, tools=[WEATHER], max_tokens=80)
        choice = answer.choices[0]
        self.assertEqual((choice.finish_reason, choice.message.content), ("tool_calls", None))
        [call] = choice.message.tool_calls
        self.assertEqual((call.function.name, json.loads(call.function.arguments)), ("get_weather", {"city": "Oslo"}))
        [streamed] = self.gather(self.chat(OSLO, tools=[WEATHER], max_tokens=80, stream=True))
        self.assertEqual((streamed["finish"], streamed["content"]), ("tool_calls", ""))
        self.assertEqual([(one["name"], one["arguments"]) for one in streamed["calls"]], [(call.function.name, call.function.arguments)])
        done = OSLO + [
            choice.message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 21, "condition": "sunny"}'},
        ]
        self.assertIn("21", self.chat(done, tools=[WEATHER], max_tokens=60).choices[0].message.content)

    def test_a_call_is_forced_where_the_model_would_make_none(self):
        for choice, names in (("required", ("get_weather", "get_time")), (named("get_time"), ("get_time",))):
            for stream in (False, True):
                answer = self.chat(FRANCE, tools=[WEATHER, TIME], tool_choice=choice, parallel_tool_calls=False, max_tokens=90, stream=stream)
                if stream:
                    [one] = self.gather(answer)
                    finish, calls = one["finish"], [(call["name"], call["arguments"]) for call in one["calls"]]
                else:
                    finish = answer.choices[0].finish_reason
                    calls = [(call.function.name, call.function.arguments) for call in answer.choices[0].message.tool_calls]
                self.assertEqual((finish, len(calls)), ("tool_calls", 1))
                name, arguments = calls[0][0], json.loads(calls[0][1])
                self.assertIn(name, names)
                if name == "get_time":
                    self.assertTrue(arguments["zone"] in ("UTC", "CET") and 0 <= arguments["digits"] <= 9, arguments)
                else:
                    self.assertEqual(list(arguments), ["city"])

    def test_no_call_is_made_where_none_may_be(self):
        answer = self.chat(OSLO, tools=[WEATHER], tool_choice="none", max_tokens=60).choices[0]
        self.assertIsNone(answer.message.tool_calls)
        self.assertNotEqual(answer.finish_reason, "tool_calls")

    def test_ids_of_calls_repeat_with_the_seed_and_differ_between_turns(self):
        def ids(seed, messages=OSLO):
            answer = self.chat(messages, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, seed=seed, max_tokens=80)
            return [call.id for call in answer.choices[0].message.tool_calls]

        self.assertEqual(ids(1), ids(1))
        self.assertNotEqual(ids(1), ids(2))
        self.assertNotEqual(ids(1), ids(1, FRANCE))

    def test_tools_that_cannot_be_called_are_refused_by_name(self):
        self.refused("tool_choice", "get_time", tools=[WEATHER], tool_choice=named("get_time"))
        self.refused("tool_choice", "list one", tool_choice="required")
        self.refused("tool_choice", '"always"', tools=[WEATHER], tool_choice="always")
        self.refused("tool_choice", "format", tools=[WEATHER], tool_choice="required", response_format={"type": "json_object"})
        nameless = {"type": "function", "function": {"parameters": {}}}
        self.refused("tools[0].function.name", "name the function", tools=[nameless])
        self.refused("tools[0].function", "describe it", tools=[{"type": "function"}])
        self.refused("tools[0].type", "web_search", tools=[{"type": "web_search"}])


class Thinking(Node):
    def test_thoughts_are_apart_and_counted(self):
        answer = self.chat(SUM, max_tokens=200)
        message = answer.choices[0].message
        self.assertIn("68", message.content)
        self.assertTrue(message.reasoning_content and "think>" not in message.reasoning_content + message.content, message)
        thought = answer.usage.completion_tokens_details.reasoning_tokens
        self.assertTrue(0 < thought < answer.usage.completion_tokens, answer.usage)
        [streamed] = self.gather(self.chat(SUM, max_tokens=200, stream=True))
        self.assertEqual((streamed["reasoning"], streamed["content"]), (message.reasoning_content, message.content))


class Begun(Node):
    def test_an_answer_goes_on_from_the_last_message_if_that_is_said(self):
        begun = FRANCE + [{"role": "assistant", "content": "The capital of"}]
        answer = self.chat(begun, extra_body={"continue_final_message": True, "add_generation_prompt": False})
        self.assertEqual(begun[-1]["content"] + answer.choices[0].message.content, PARIS)
        self.refused("messages[0].role", "assistant", extra_body={"continue_final_message": True})


class Sampling(Node):
    def test_log_probabilities_are_those_of_the_tokens_drawn(self):
        answer = self.chat(FRANCE, logprobs=True, top_logprobs=3)
        tokens = answer.choices[0].logprobs.content
        self.assertEqual(len(tokens), answer.usage.completion_tokens)
        # The token that ends the answer is the last of them, by its name.
        self.assertEqual("".join(token.token for token in tokens), PARIS + "<|im_end|>")
        self.assertEqual(bytes(byte for token in tokens[:-1] for byte in token.bytes).decode(), PARIS)
        for token in tokens:
            top = [one.logprob for one in token.top_logprobs]
            self.assertTrue(len(top) == 3 and top == sorted(top, reverse=True) and top[0] <= 0, token)
            # Greedy: the token drawn is the likeliest.
            self.assertEqual((token.token, token.logprob), (token.top_logprobs[0].token, top[0]))
            self.assertLessEqual(sum(math.exp(one) for one in top), 1.0001)
        [streamed] = self.gather(self.chat(FRANCE, logprobs=True, top_logprobs=3, stream=True))
        self.assertEqual([token.logprob for token in streamed["logprobs"]], [token.logprob for token in tokens])
        self.refused("top_logprobs", "21", logprobs=True, top_logprobs=21)
        self.refused("top_logprobs", "logprobs", top_logprobs=2)

    def test_legacy_log_probabilities_point_into_the_text(self):
        answer = self.client.completions.create(model="pip", prompt="One day, a fox", temperature=0, max_tokens=12, logprobs=2)
        choice, logprobs = answer.choices[0], answer.choices[0].logprobs
        self.assertEqual(len(logprobs.tokens), answer.usage.completion_tokens)
        for token, offset in zip(logprobs.tokens, logprobs.text_offset):
            # The token that ends the answer stands behind the text, by its name.
            self.assertEqual(choice.text[offset : offset + len(token)], "" if token == "<|im_end|>" else token)

    def test_choices_are_streamed_beside_each_other_with_seeds_that_count_up(self):
        whole = self.chat(STORY, n=3, temperature=1, seed=11, max_tokens=40)
        texts = [choice.message.content for choice in whole.choices]
        self.assertEqual(([choice.index for choice in whole.choices], len(set(texts))), ([0, 1, 2], 3))
        streamed = self.gather(self.chat(STORY, n=3, temperature=1, seed=11, max_tokens=40, stream=True))
        self.assertEqual([one["content"] for one in streamed], texts)
        for offset, text in enumerate(texts):
            self.assertEqual(self.chat(STORY, temperature=1, seed=11 + offset, max_tokens=40).choices[0].message.content, text)
        one = self.chat(STORY, temperature=1, seed=11, max_tokens=40)
        self.assertEqual(whole.usage.prompt_tokens, one.usage.prompt_tokens)
        self.assertGreater(whole.usage.completion_tokens, one.usage.completion_tokens)
        self.refused("n", "17", n=17)

    def test_several_prompts_are_several_choices(self):
        prompts = ["One day, a fox", "The capital of"]
        both = self.client.completions.create(model="pip", prompt=prompts, n=2, temperature=1, seed=5, max_tokens=9)
        self.assertEqual([choice.index for choice in both.choices], [0, 1, 2, 3])
        for index, prompt in ((0, prompts[0]), (2, prompts[1])):
            alone = self.client.completions.create(model="pip", prompt=prompt, temperature=1, seed=5, max_tokens=9)
            self.assertEqual(alone.choices[0].text, both.choices[index].text)

    def test_a_bias_forbids_a_token_and_stops_are_several(self):
        paris = self.client.completions.create(model="pip", prompt="x", max_tokens=1, logprobs=0)  # the endpoint is there
        self.assertEqual(len(paris.choices[0].logprobs.tokens), 1)
        first = self.chat(FRANCE, logprobs=True, max_tokens=1).choices[0].logprobs.content[0].token
        other = [self.chat(FRANCE, logit_bias={str(id): -100}, max_tokens=1).choices[0].message.content for id in range(256, 1527, 20)]
        self.assertEqual(set(other) - {first} == set(), all(text == first for text in other))
        self.assertEqual(self.chat(FRANCE, stop=["nothing", " of ", " capital "]).choices[0].message.content, "The")
        self.refused("logit_bias[7]", "101", logit_bias={"7": 101})
        self.refused("logit_bias", "5000", logit_bias={"5000": 1})
        self.refused("stop", "empty", stop=[""])

    def test_an_answer_has_at_least_the_tokens_asked_for(self):
        short = self.chat(FRANCE).usage.completion_tokens
        answer = self.chat(FRANCE, extra_body={"min_tokens": short + 20}, max_tokens=short + 30)
        self.assertGreaterEqual(answer.usage.completion_tokens, short + 20)
        answer = self.chat(FRANCE, extra_body={"ignore_eos": True}, max_tokens=short + 30)
        self.assertEqual((answer.usage.completion_tokens, answer.choices[0].finish_reason), (short + 30, "length"))
        self.refused("min_tokens", "9", extra_body={"min_tokens": 9}, max_tokens=4)

    def test_a_prefix_read_before_is_counted_as_cached(self):
        long = [{"role": "system", "content": "You are Nova. " + "Be kind and brief. " * 20}]
        first = self.chat(long + [{"role": "user", "content": "What is 1 + 1?"}]).usage
        second = self.chat(long + [{"role": "user", "content": "What is the capital of Spain?"}]).usage
        self.assertLess(first.prompt_tokens_details.cached_tokens, 16)  # what every prompt begins with
        cached = second.prompt_tokens_details.cached_tokens
        # All whole blocks of what both begin with; the question differs in its last dozen tokens.
        self.assertTrue(second.prompt_tokens - 32 < cached < second.prompt_tokens, second)


class Embeddings(Node):
    def embed(self, input, **more):
        return self.client.embeddings.create(**{"model": "bert", "input": input, **more})

    def refused(self, param, *words, **more):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.embed(**{"input": "hello world", **more})
        self.assertEqual(caught.exception.param, param, caught.exception)
        for word in words:
            self.assertIn(word, str(caught.exception))

    def test_the_model_is_listed_as_one_that_embeds(self):
        kinds = {model.id: model.model_dump()["capabilities"] for model in self.client.models.list()}
        self.assertEqual((kinds["bert"], kinds["pip"]), (["embed"], ["generate", "tools"]))

    def test_texts_tokens_and_batches_give_the_same_vectors(self):
        texts = ["hello world", "the cat is on the house"]
        both = self.embed(texts, encoding_format="float")
        self.assertEqual([item.index for item in both.data], [0, 1])
        self.assertEqual((both.usage.prompt_tokens, both.usage.total_tokens), (12, 12))
        for text, item in zip(texts, both.data):
            self.assertEqual(len(item.embedding), 64)
            self.assertAlmostEqual(math.hypot(*item.embedding), 1, places=5)
            self.assertEqual(self.embed(text, encoding_format="float").data[0].embedding, item.embedding)
        self.assertEqual(self.embed([2, 103, 104, 3], encoding_format="float").data[0].embedding, both.data[0].embedding)
        self.assertEqual(self.embed([[2, 103, 104, 3]], encoding_format="float").data[0].embedding, both.data[0].embedding)
        # The client's own default is base64.
        for floats, decoded in zip(both.data[0].embedding, self.embed(texts[0]).data[0].embedding):
            self.assertAlmostEqual(floats, decoded, places=6)

    def test_dimensions_shorten_and_scale_again(self):
        whole = self.embed("hello world", encoding_format="float").data[0].embedding
        short = self.embed("hello world", dimensions=16, encoding_format="float").data[0].embedding
        length = math.hypot(*whole[:16])
        self.assertEqual(len(short), 16)
        for one, other in zip(short, whole):
            self.assertAlmostEqual(one, other / length, places=5)

    def test_what_cannot_be_embedded_is_refused_by_name(self):
        self.refused("dimensions", "65", "64", dimensions=65)
        self.refused("dimensions", "0", dimensions=0)
        self.refused("input", "empty", input="")
        self.refused("input", "empty", input=[])
        self.refused("input[1]", "empty", input=["hello", ""])
        self.refused("input", "5000", input=[2, 5000, 3])
        self.refused("input[1]", "102", "64", input=["hello", "hello " * 100])
        with self.assertRaises(openai.UnprocessableEntityError) as caught:
            self.embed("hello", model="pip")
        self.assertIn("does not embed", str(caught.exception))
        with self.assertRaises(openai.UnprocessableEntityError) as caught:
            self.client.chat.completions.create(model="bert", messages=FRANCE)
        self.assertIn("/v1/embeddings", str(caught.exception))
        with self.assertRaises(openai.NotFoundError):
            self.embed("hello", model="none")


if __name__ == "__main__":
    unittest.main()
