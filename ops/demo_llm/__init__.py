"""The demo language model: a page of questions and answers, and the script that trains a model to know it by heart."""
