"""OpenAI's official client against a node; PLEXUS_URL names it."""

import os
import unittest

import openai

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
PARIS = "The capital of France is Paris."
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class OpenAI(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.client = openai.OpenAI(base_url=os.environ["PLEXUS_URL"] + "/v1", api_key="none", max_retries=0, timeout=60)

    def chat(self, messages, **more):
        return self.client.chat.completions.create(model="pip", messages=messages, temperature=0, **more)

    def test_models_are_listed_and_described(self):
        models = list(self.client.models.list())
        self.assertIn("pip", [model.id for model in models])
        self.assertEqual(self.client.models.retrieve("pip").object, "model")

    def test_a_chat_is_answered_with_its_usage(self):
        answer = self.chat(FRANCE)
        self.assertEqual(answer.choices[0].message.content, PARIS)
        self.assertEqual((answer.choices[0].finish_reason, answer.choices[0].message.role), ("stop", "assistant"))
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)
        self.assertGreater(answer.usage.prompt_tokens, 0)
        self.assertIsNotNone(answer.usage.prompt_tokens_details.cached_tokens)
        self.assertTrue(answer._request_id.startswith("req_"))

    def test_a_chat_is_streamed(self):
        text, finish, usage = "", None, None
        for chunk in self.chat(FRANCE, stream=True, stream_options={"include_usage": True}):
            if chunk.usage:
                usage = chunk.usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
        self.assertEqual((text, finish), (PARIS, "stop"))
        self.assertGreater(usage.completion_tokens, 0)

    def test_the_streaming_helper_gathers_the_same_answer(self):
        with self.client.chat.completions.stream(model="pip", messages=FRANCE, temperature=0) as stream:
            for _ in stream:
                pass
            self.assertEqual(stream.get_final_completion().choices[0].message.content, PARIS)

    def test_text_is_completed(self):
        prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
        answer = self.client.completions.create(model="pip", prompt=prompt, temperature=0, max_tokens=30)
        self.assertEqual(answer.choices[0].text, PARIS)
        streamed = self.client.completions.create(model="pip", prompt=prompt, temperature=0, max_tokens=30, stream=True)
        self.assertEqual("".join(chunk.choices[0].text for chunk in streamed if chunk.choices), PARIS)

    def test_earlier_turns_are_remembered(self):
        messages = [{"role": "user", "content": "My name is Alice."}]
        messages.append({"role": "assistant", "content": self.chat(messages).choices[0].message.content})
        messages.append({"role": "user", "content": "What is my name?"})
        self.assertEqual(self.chat(messages).choices[0].message.content, "Your name is Alice.")

    def test_content_may_come_in_parts(self):
        parts = [{"type": "text", "text": "What is the capital "}, {"type": "text", "text": "of France?"}]
        self.assertEqual(self.chat([{"role": "user", "content": parts}]).choices[0].message.content, PARIS)

    def test_stop_texts_and_limits_end_an_answer(self):
        answer = self.chat(FRANCE, stop=[" is P"])
        self.assertEqual((answer.choices[0].message.content, answer.choices[0].finish_reason), ("The capital of France", "stop"))
        answer = self.chat(FRANCE, max_completion_tokens=2)
        self.assertEqual((answer.usage.completion_tokens, answer.choices[0].finish_reason), (2, "length"))

    def test_a_seed_makes_an_answer_repeatable(self):
        story = [{"role": "user", "content": "Tell me a story about a fox named Ruby."}]
        answers = {
            self.client.chat.completions.create(model="pip", messages=story, temperature=1.0, seed=5, max_tokens=60)
            .choices[0]
            .message.content
            for _ in range(3)
        }
        self.assertEqual(len(answers), 1)

    def test_tools_and_their_results_are_accepted(self):
        asked = [{"role": "user", "content": "What is the weather in Oslo?"}]
        answer = self.chat(asked, tools=[TOOL], tool_choice="auto", max_tokens=60)
        self.assertIn(answer.choices[0].finish_reason, ("stop", "tool_calls", "length"))
        call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
        done = asked + [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": '{"temperature": 21, "condition": "sunny"}'},
        ]
        self.assertIn("Oslo", self.chat(done, tools=[TOOL], max_tokens=60).choices[0].message.content)

    def test_an_unknown_model_is_a_not_found_error(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.chat.completions.create(model="none", messages=FRANCE)
        self.assertEqual(caught.exception.code, "model_not_found")
        with self.assertRaises(openai.NotFoundError):
            self.client.models.retrieve("none")

    def test_a_prompt_too_long_is_a_bad_request_error(self):
        for stream in (False, True):
            with self.assertRaises(openai.BadRequestError) as caught:
                self.chat([{"role": "user", "content": "capital " * 4000}], stream=stream)
            self.assertEqual(caught.exception.code, "context_length_exceeded")

    def test_a_value_out_of_range_is_a_bad_request_error_that_names_it(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.chat.completions.create(model="pip", messages=FRANCE, temperature=-1)
        self.assertEqual(caught.exception.param, "temperature")


if __name__ == "__main__":
    unittest.main()
