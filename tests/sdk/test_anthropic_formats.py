"""What Anthropic's official client can ask beyond plain messages: tools, thinking, formats; PLEXUS_URL names the node."""

import json
import os
import unittest

import anthropic

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
OSLO = [{"role": "user", "content": "What is the weather in Oslo?"}]
SUM = [{"role": "user", "content": "What is 23 + 45? Think step by step."}]


def tool(name, properties):
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"name": name, "description": f"{name} of a city", "input_schema": schema}


WEATHER = tool("get_weather", {"city": {"type": "string", "maxLength": 30}})
TIME = tool("get_time", {"zone": {"enum": ["UTC", "CET"]}, "digits": {"type": "integer", "minimum": 0, "maximum": 9}})
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer", "minimum": 1, "maximum": 99999}},
    "required": ["city", "people"],
    "additionalProperties": False,
}


class Node(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.client = anthropic.Anthropic(base_url=os.environ["PLEXUS_URL"], api_key="none", max_retries=0, timeout=60)

    def create(self, messages, max_tokens=120, extra_body=None, **more):
        body = {"temperature": 0, **(extra_body or {})}
        return self.client.messages.create(model="pip", messages=messages, max_tokens=max_tokens, extra_body=body, **more)

    def gather(self, messages, max_tokens=120, extra_body=None, **more):
        body = {"temperature": 0, **(extra_body or {})}
        with self.client.messages.stream(model="pip", messages=messages, max_tokens=max_tokens, extra_body=body, **more) as stream:
            for _ in stream:
                pass
            return stream.get_final_message()

    def refused(self, *words, messages=FRANCE, **more):
        with self.assertRaises(anthropic.BadRequestError) as caught:
            self.create(messages, **more)
        for word in words:
            self.assertIn(word, str(caught.exception))


class Tools(Node):
    def test_a_call_is_made_streamed_as_whole_and_its_result_is_told(self):
        message = self.create(OSLO, tools=[WEATHER])
        self.assertEqual((message.stop_reason, [block.type for block in message.content]), ("tool_use", ["tool_use"]))
        call = message.content[0]
        self.assertEqual((call.name, call.input), ("get_weather", {"city": "Oslo"}))
        streamed = self.gather(OSLO, tools=[WEATHER])
        self.assertEqual((streamed.stop_reason, streamed.content[0].name, streamed.content[0].input), ("tool_use", call.name, call.input))
        result = {"type": "tool_result", "tool_use_id": call.id, "content": '{"temperature": 21, "condition": "sunny"}'}
        done = OSLO + [{"role": "assistant", "content": [block.model_dump() for block in message.content]}, {"role": "user", "content": [result]}]
        self.assertIn("21", self.create(done, tools=[WEATHER]).content[0].text)

    def test_a_call_is_forced_where_the_model_would_make_none(self):
        for choice, names in (({"type": "any"}, ("get_weather", "get_time")), ({"type": "tool", "name": "get_time"}, ("get_time",))):
            for ask in (self.create, self.gather):
                message = ask(FRANCE, tools=[WEATHER, TIME], tool_choice={**choice, "disable_parallel_tool_use": True})
                calls = [block for block in message.content if block.type == "tool_use"]
                self.assertEqual((message.stop_reason, len(calls)), ("tool_use", 1))
                self.assertIn(calls[0].name, names)
                if calls[0].name == "get_time":
                    self.assertTrue(calls[0].input["zone"] in ("UTC", "CET") and 0 <= calls[0].input["digits"] <= 9, calls)

    def test_no_call_is_made_where_none_may_be(self):
        message = self.create(OSLO, tools=[WEATHER], tool_choice={"type": "none"}, max_tokens=60)
        self.assertEqual([block.type for block in message.content], ["text"])

    def test_tools_that_cannot_be_called_are_refused_by_name(self):
        self.refused("tool_choice", "get_time", tools=[WEATHER], tool_choice={"type": "tool", "name": "get_time"})
        self.refused("tool_choice.type", "always", tools=[WEATHER], tool_choice={"type": "always"})
        self.refused("tool_choice", tool_choice={"type": "any"})
        self.refused("tools[0].type", "bash_20250124", tools=[{"type": "bash_20250124", "name": "bash"}])


class Answers(Node):
    def test_an_answer_goes_on_from_a_last_turn_of_the_assistant(self):
        for ask in (self.create, self.gather):
            message = ask(FRANCE + [{"role": "assistant", "content": "The capital of"}])
            self.assertEqual([block.text for block in message.content], [" France is Paris."])

    def test_thoughts_are_blocks_of_their_own_and_may_be_sent_back(self):
        for ask in (self.create, self.gather):
            message = ask(SUM, max_tokens=200, thinking={"type": "enabled", "budget_tokens": 1024})
            self.assertEqual([block.type for block in message.content], ["thinking", "text"])
            self.assertNotIn("think>", message.content[0].thinking)
            self.assertIn("68", message.content[1].text)
            turns = SUM + [{"role": "assistant", "content": [block.model_dump() for block in message.content]}, *FRANCE]
            self.assertIn("Paris", self.create(turns).content[-1].text)

    def test_a_format_is_followed(self):
        for ask in (self.create, self.gather):
            message = ask(FRANCE, output_config={"format": {"type": "json_schema", "schema": CITY}})
            city = json.loads(message.content[0].text)
            self.assertTrue(list(city) == ["city", "people"] and 1 <= city["people"] <= 99999, city)
        self.refused("output_config.format", "xml", extra_body={"output_config": {"format": {"type": "xml"}}})
        bad = {"type": "json_schema", "schema": {"type": "thing"}}
        self.refused("output_config.format", "thing", extra_body={"output_config": {"format": bad}})

    def test_a_prefix_read_before_is_counted_as_read_from_the_cache(self):
        system = "You are Nova, a helpful assistant. " + "Be brief and kind, please. " * 12
        first = self.create([{"role": "user", "content": "What is 1 + 1?"}], system=system).usage
        second = self.create([{"role": "user", "content": "What is the capital of Spain?"}], system=system).usage
        counted = self.client.messages.count_tokens(model="pip", system=system, messages=[{"role": "user", "content": "What is the capital of Spain?"}])
        self.assertLess(first.cache_read_input_tokens, 16)  # what every prompt begins with
        self.assertEqual(second.input_tokens + second.cache_read_input_tokens, counted.input_tokens)
        self.assertGreater(second.cache_read_input_tokens, counted.input_tokens - 32)

    def test_further_sampling_fields_are_taken(self):
        bodies = [{"min_tokens": 30}, {"ignore_eos": True}, {"logit_bias": {"300": -100}}, {"seed": 4, "temperature": 1, "min_p": 0.1}]
        for body in bodies:
            answers = {self.create(FRANCE, max_tokens=40, extra_body=body).content[0].text for _ in range(2)}
            self.assertEqual(len(answers), 1, body)


if __name__ == "__main__":
    unittest.main()
