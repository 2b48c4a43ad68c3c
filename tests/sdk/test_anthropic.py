"""Anthropic's official client against a node; PLEXUS_URL names it."""

import os
import unittest

import anthropic

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
PARIS = "The capital of France is Paris."
TOOL = {
    "name": "get_weather",
    "description": "Get the weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
GREEDY = {"temperature": 0}  # the client's own argument is gone since version 2


class Anthropic(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.client = anthropic.Anthropic(base_url=os.environ["PLEXUS_URL"], api_key="none", max_retries=0, timeout=60)

    def create(self, messages, max_tokens=60, **more):
        return self.client.messages.create(model="pip", messages=messages, max_tokens=max_tokens, extra_body=GREEDY, **more)

    def test_a_message_is_answered_with_its_usage(self):
        message = self.create(FRANCE)
        self.assertEqual((message.type, message.role, message.stop_reason), ("message", "assistant", "end_turn"))
        self.assertEqual((message.content[0].type, message.content[0].text), ("text", PARIS))
        self.assertGreater(message.usage.input_tokens, 0)
        self.assertGreater(message.usage.output_tokens, 0)
        self.assertTrue(message._request_id.startswith("req_"))

    def test_a_message_is_streamed(self):
        text, kinds = "", []
        for event in self.create(FRANCE, stream=True):
            kinds.append(event.type)
            if event.type == "content_block_delta":
                text += event.delta.text
        self.assertEqual(text, PARIS)
        self.assertEqual((kinds[0], kinds[-1]), ("message_start", "message_stop"))

    def test_the_streaming_helper_gathers_the_same_message(self):
        with self.client.messages.stream(model="pip", messages=FRANCE, max_tokens=60, extra_body=GREEDY) as stream:
            text = "".join(stream.text_stream)
            message = stream.get_final_message()
        self.assertEqual((text, message.content[0].text, message.stop_reason), (PARIS, PARIS, "end_turn"))
        self.assertGreater(message.usage.output_tokens, 0)

    def test_a_system_prompt_has_its_effect_as_text_and_as_blocks(self):
        name = [{"role": "user", "content": "What is your name?"}]
        persona = "You are Nova, a helpful assistant."
        for system in (persona, [{"type": "text", "text": persona, "cache_control": {"type": "ephemeral"}}]):
            self.assertIn("Nova", self.create(name, system=system).content[0].text)

    def test_tokens_are_counted_as_a_message_counts_them(self):
        counted = self.client.messages.count_tokens(model="pip", messages=FRANCE)
        usage = self.create(FRANCE).usage
        self.assertEqual(counted.input_tokens, usage.input_tokens + usage.cache_read_input_tokens)

    def test_models_are_listed_in_this_client_s_shape(self):
        models = {model.id: model for model in self.client.models.list()}
        self.assertEqual((models["pip"].type, bool(models["pip"].display_name)), ("model", True))
        self.assertEqual(self.client.models.retrieve("pip").id, "pip")

    def test_earlier_turns_are_remembered(self):
        turns = [
            {"role": "user", "content": "My name is Alice."},
            {"role": "assistant", "content": [{"type": "text", "text": "Nice to meet you, Alice!"}]},
            {"role": "user", "content": "What is my name?"},
        ]
        self.assertEqual(self.create(turns).content[0].text, "Your name is Alice.")

    def test_stop_sequences_and_limits_end_a_message(self):
        message = self.create(FRANCE, stop_sequences=[" is P"])
        self.assertEqual((message.content[0].text, message.stop_reason), ("The capital of France", "stop_sequence"))
        self.assertEqual(message.stop_sequence, " is P")
        message = self.create(FRANCE, max_tokens=2)
        self.assertEqual((message.usage.output_tokens, message.stop_reason), (2, "max_tokens"))

    def test_tools_and_their_results_are_accepted(self):
        asked = [{"role": "user", "content": "What is the weather in Oslo?"}]
        message = self.create(asked, tools=[TOOL], tool_choice={"type": "auto"})
        self.assertIn(message.stop_reason, ("end_turn", "tool_use", "max_tokens"))
        done = asked + [
            {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Oslo"}}]},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": '{"temperature": 21, "condition": "sunny"}'}],
            },
        ]
        self.assertIn("Oslo", self.create(done, tools=[TOOL]).content[0].text)

    def test_an_unknown_model_is_a_not_found_error(self):
        with self.assertRaises(anthropic.NotFoundError) as caught:
            self.client.messages.create(model="none", messages=FRANCE, max_tokens=9)
        self.assertEqual(caught.exception.body["error"]["type"], "not_found_error")

    def test_a_prompt_too_long_is_a_bad_request_error(self):
        with self.assertRaises(anthropic.BadRequestError) as caught:
            self.create([{"role": "user", "content": "capital " * 4000}])
        self.assertIn("prompt is too long: ", str(caught.exception))

    def test_an_empty_conversation_is_a_bad_request_error(self):
        with self.assertRaises(anthropic.BadRequestError):
            self.create([])


if __name__ == "__main__":
    unittest.main()
