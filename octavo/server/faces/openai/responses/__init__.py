"""/v1/responses: OpenAI's second form of a conversation, over the one that all faces share."""
