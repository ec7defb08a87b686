"""Ask a parked car, and read its answer as it is written. Needs `pip install openai` only.

    python chat.py "Tell me a story about a car."

OPENAI_BASE_URL says where the dispatcher is (http://127.0.0.1:8080/v1 without it) and
OPENAI_API_KEY is a tenant's key, where the dispatcher has accounts. Kill the car that answers:
another one goes on with the sentence.
"""

import os
import sys

import openai

client = openai.OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8080/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
question = " ".join(sys.argv[1:]) or "What is the capital of France?"
stream = client.chat.completions.create(
    model=os.environ.get("MODEL", "smollm2"),
    messages=[{"role": "user", "content": question}],
    max_tokens=200,
    stream=True,
)
for event in stream:
    if event.choices:
        print(event.choices[0].delta.content or "", end="", flush=True)
print()
